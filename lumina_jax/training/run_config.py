"""A run's configuration: ConfigDicts at the edge, frozen dataclasses inside.

`RunConfig` names the sections, each the dataclass of the module that reads it.
A config file may leave out what has a default there; the `config.json` of a run
shows every number it depends on.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from etils import epath

from data_pipelines.captioned import MediaConfig
from data_pipelines.digits import DigitsConfig
from data_pipelines.synthetic import SyntheticConfig
from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.files import atomic, schema
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.model.network import Network
from lumina_jax.parallel.mesh import MeshConfig
from lumina_jax.sampling.program import SamplingConfig
from lumina_jax.training.optimizer import OptimizerConfig

FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """How long, and what is written when.

  Attributes:
    steps: batches of the whole run, skipped ones too.
    batch_rows: rows of the global batch.
    log_every: steps between lines of metrics.
    checkpoint_every: steps between checkpoints; the last step has one anyway.
    keep_checkpoints: how many of the newest are kept.
    sample_every: steps between pictures of samples; the last step has one.
    sample_prompts: prompts of that picture.
    samples_per_prompt: pictures of each.
    microbatches: that a batch is taken in, one after the other, so that only
      a part of it needs memory at a time.
    max_skipped: so many updates in a row that are not finite end the run.
    watchdog_seconds: without a step after which the stacks of all threads are
      printed; 0 = never.
  """

  steps: int
  batch_rows: int
  log_every: int
  checkpoint_every: int
  keep_checkpoints: int
  sample_every: int
  sample_prompts: tuple[str, ...]
  samples_per_prompt: int
  microbatches: int = 1
  max_skipped: int = 10
  watchdog_seconds: float = 600.0

  def __post_init__(self):
    object.__setattr__(self, "sample_prompts", tuple(self.sample_prompts))
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, int) and value < 1:
        raise ValueError(f"{field.name} = {value}: must be positive")
    if self.checkpoint_every % self.log_every:
      raise ValueError(
        f"checkpoint_every = {self.checkpoint_every} must be a multiple of "
        f"log_every = {self.log_every}, so that a resumed run logs the same"
      )
    if self.batch_rows % self.microbatches:
      raise ValueError(
        f"batch_rows = {self.batch_rows} do not divide into microbatches = "
        f"{self.microbatches}"
      )
    if not self.watchdog_seconds >= 0:
      raise ValueError(
        f"watchdog_seconds = {self.watchdog_seconds}: from 0, which is never"
      )
    if not self.sample_prompts:
      raise ValueError('sample_prompts is empty; ("",) is unconditional')


@dataclasses.dataclass(frozen=True)
class EncodersConfig:
  """Frozen networks of a run, each the folder or the hub name of its weights.

  Attributes:
    vae: autoencoder whose latents are learned; "" = pixels are.
    text: language model that reads captions; "" = the embedded encoder.
    tokenizer: of the language model; "" = it lies with it.
    dtype: that the language model computes in.
  """

  vae: str = ""
  text: str = ""
  tokenizer: str = ""
  dtype: str = "bfloat16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Everything a run depends on; without a text encoder prompts are classes.

  Attributes:
    seed: of all random numbers.
    init_from: weights to begin with: a run of ours, or any format that
      `lumina convert` reads, which holds the backbone alone; "" = random ones.
    init_strict: whether they have to be of the very network; otherwise what
      fits is taken and the rest is listed.
    medium: name of the medium that the network generates.
    encoders: networks around the backbone that are not trained.
  """

  seed: int
  init_from: str = ""
  init_strict: bool = True
  medium: str = "image"
  model: ModelConfig
  text_encoder: Utf8Config | FrozenTextConfig | None = None
  encoders: EncodersConfig = EncodersConfig()
  data: DigitsConfig | SyntheticConfig | MediaConfig
  objective: Objective = PLAIN
  time: TimeDistribution
  optimizer: OptimizerConfig
  training: TrainingConfig
  mesh: MeshConfig
  sampling: SamplingConfig

  def __post_init__(self):
    frozen = isinstance(self.text_encoder, FrozenTextConfig)
    if frozen and not self.encoders.text:
      raise ValueError(
        "text_encoder is a frozen language model: set encoders.text to its "
        "folder"
      )
    if not self.text_encoder or frozen or not self.sampling.ladder:
      return
    words = min(rung[1] for rung in self.sampling.ladder)
    if self.text_encoder.max_words > words:
      raise ValueError(
        f"text_encoder.max_words = {self.text_encoder.max_words} exceeds the "
        f"{words} words of a rung of sampling.ladder"
      )

  @property
  def network(self) -> Network:
    return Network(self.model, self.text_encoder, self.objective)


def parse(values: Any, at: str = "config") -> RunConfig:
  """Builds the configuration of a run; see `schema.parse`."""
  return schema.parse(RunConfig, values, at)


def save(config: RunConfig, workdir: epath.PathLike) -> None:
  """Writes `config.json`, whole or not at all."""
  text = json.dumps(schema.to_dict(config), indent=2) + "\n"
  atomic.write_text(epath.Path(workdir) / FILE, text)


def load(workdir: epath.PathLike) -> RunConfig:
  """Reads the config of a workdir.

  Raises:
    FileNotFoundError: if the folder is no workdir.
  """
  path = epath.Path(workdir) / FILE
  text = atomic.read_text(path)
  if text is None:
    raise FileNotFoundError(
      f"{workdir} has no {FILE}, so no run was started there; train first "
      "(python -m lumina_jax.train --config=configs/digits.py "
      f"--workdir={workdir}) or name another folder"
    )
  try:
    values = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} cannot be read: {error}") from error
  return parse(values, at=str(path))
