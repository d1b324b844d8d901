"""The config of a run: a ConfigDict at the edge, frozen dataclasses inside.

Each section is a dataclass of the module that uses it. A config file may leave
out fields with a default; the `config.json` of a run holds every value.
"""

import dataclasses
from typing import Any

from etils import epath
from jax.sharding import Mesh

from data_pipelines.data_config import DataConfig
from lumina_jax import media
from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.files import schema
from lumina_jax.files.json_file import read_json, write_json
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.model.network import Network
from lumina_jax.model.offload import Offloadable
from lumina_jax.parallel.mesh import MeshConfig
from lumina_jax.pretrained.encoders import Encoders, EncodersConfig
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig
from lumina_jax.training.optimizer_config import OptimizerConfig

FILE = "config.json"
NO_ENCODERS = EncodersConfig()
NOTHING_LOADED = Encoders()


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
  """Length of a run, and intervals of logging, checkpoints and samples.

  Attributes:
    steps: batches of the whole run, skipped ones included.
    batch_rows: rows of the global batch.
    log_every: steps between rows of metrics.
    checkpoint_every: steps between checkpoints; the last step has one anyway.
    keep_checkpoints: number of newest checkpoints to keep.
    sample_every: steps between sheets of samples; the last step has one.
    sample_prompts: prompts of the sheet.
    samples_per_prompt: samples of each prompt.
    microbatches: number of parts that a batch is processed in, one after the
      other, so that only one of them needs memory at a time.
    max_skipped: number of non-finite updates in a row that ends the run.
    watchdog_seconds: time without a step after which the stacks of all threads
      are printed; 0 = never.
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
        f"batch_rows = {self.batch_rows} does not divide into microbatches = "
        f"{self.microbatches}"
      )
    if not self.watchdog_seconds >= 0:
      raise ValueError(
        f"watchdog_seconds = {self.watchdog_seconds}: must be 0 (never) or "
        "positive"
      )
    if not self.sample_prompts:
      raise ValueError('sample_prompts is empty; ("",) is unconditional')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """All options of a run.

  Attributes:
    medium: name of the medium: "image", "video", "audio".
    seed: of all random numbers.
    init_from: weights to start from: a workdir, or a backbone in any format
      that `lumina convert` reads; "" = random weights.
    init_strict: whether they must be of exactly this network; otherwise the
      tensors that fit are used, and all others are listed.
    model: the backbone.
    text_encoder: encodes prompts; None = prompts are class numbers.
    encoders: frozen networks around the backbone.
    data: source of samples, and token budgets of a row.
    objective: what the backbone predicts.
    time: distribution of times in training.
    optimizer: rule, schedule and EMA.
    training: length and intervals.
    mesh: layout over devices.
    sampling: how to sample unless a call says otherwise.
    sizes: sizes of samples.
  """

  medium: str
  seed: int
  init_from: str = ""
  init_strict: bool = True
  model: ModelConfig
  text_encoder: Utf8Config | TextFeaturesConfig | None = None
  encoders: EncodersConfig = NO_ENCODERS
  data: DataConfig
  objective: Objective = PLAIN
  time: TimeDistribution
  optimizer: OptimizerConfig
  training: TrainingConfig
  mesh: MeshConfig
  sampling: SamplingOptions
  sizes: SizeConfig

  def __post_init__(self):
    axes = len(media.find(self.medium).axes)
    for name, value in (
      ("model.patch", self.model.patch),
      ("sizes.default", self.sizes.default),
    ):
      if len(value) != axes:
        raise ValueError(
          f"{name} = {value} needs {axes} values, one for each axis of medium "
          f"{self.medium!r}"
        )
    frozen = isinstance(self.text_encoder, TextFeaturesConfig)
    if frozen and not self.encoders.text:
      raise ValueError(
        "text_encoder is a frozen language model: set encoders.text to its "
        "folder"
      )
    if not self.text_encoder or frozen or not self.sizes.ladder:
      return
    words = min(budget[1] for budget in self.sizes.ladder)
    if self.text_encoder.max_words > words:
      raise ValueError(
        f"text_encoder.max_words = {self.text_encoder.max_words} exceeds the "
        f"{words} words of a budget of sizes.ladder"
      )

  @property
  def network(self) -> Network:
    """Text encoder and backbone as one."""
    return Network(self.model, self.text_encoder, self.objective)

  def components(
    self,
    weights: Offloadable,
    loaded: Encoders = NOTHING_LOADED,
    mesh: Mesh | None = None,
  ) -> Components:
    """The components of the run, from weights in memory.

    Args:
      weights: weights of the network.
      loaded: frozen networks of the run.
      mesh: devices to sample on; None: the devices of the weights.
    """
    return Components(
      media.find(self.medium),
      self.network,
      weights,
      self.sampling,
      self.sizes,
      text_encoder=loaded.text,
      codec=loaded.codec,
      mesh=mesh,
    )


def parse(values: Any, at: str = "config") -> RunConfig:
  """Builds the configuration of a run; see `schema.parse`."""
  return schema.parse(RunConfig, values, at)


def save(config: RunConfig, workdir: epath.PathLike) -> None:
  """Writes `config.json` atomically."""
  write_json(epath.Path(workdir) / FILE, schema.to_dict(config))


def load(workdir: epath.PathLike) -> RunConfig:
  """Reads the config of a workdir.

  Raises:
    FileNotFoundError: if the folder is not a workdir.
    ValueError: if the file cannot be parsed.
  """
  path = epath.Path(workdir) / FILE
  try:
    return parse(read_json(path), str(path))
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"{workdir} has no {FILE}: no run has started there. Train first "
      "(python -m lumina_jax.train --config=configs/digits.py "
      f"--workdir={workdir}), or name another folder"
    ) from error
