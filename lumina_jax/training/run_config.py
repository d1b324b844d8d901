"""A run's configuration: ConfigDicts at the edge, frozen dataclasses inside.

`RunConfig` names the sections, each the dataclass of the module that reads it.
A config file may leave out what has a default there; the `config.json` of a run
shows every number it depends on.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from data_pipelines.captioned import MediaConfig
from data_pipelines.digits import DigitsConfig
from data_pipelines.synthetic import SyntheticConfig
from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.files import atomic
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
    encoders: networks around the backbone that are not trained.
  """

  seed: int
  init_from: str = ""
  init_strict: bool = True
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


def parse(values: Mapping[str, Any], cls: Any = RunConfig, at: str = "config"):
  """Builds frozen dataclasses from a ConfigDict or plain dict.

  Args:
    values: the keys of a section.
    cls: its dataclass; of a union `A | B` the keys choose, of `A | None` None.
    at: its name, for messages.

  Raises:
    ValueError: naming a key that is unknown (and the nearest known one) or
      missing, or a section that is none.
  """
  if values is None and types.NoneType in typing.get_args(cls):
    return None
  if not isinstance(values, Mapping) and not hasattr(values, "items"):
    raise ValueError(f"{at} must be a section of keys, not {values!r}")
  cls = _best_match(values, _sections(cls))
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if hasattr(cls, "of_older"):
    values = cls.of_older(dict(values.items()))
  for key in values:
    if key not in fields:
      near = difflib.get_close_matches(key, fields, n=1)
      hint = f"; did you mean {near[0]!r}?" if near else ""
      raise ValueError(f"unknown key {at}.{key}{hint}")
  hints = typing.get_type_hints(cls)
  arguments = {}
  for name, field in fields.items():
    if name not in values:
      if field.default is dataclasses.MISSING:
        raise ValueError(f"missing key {at}.{name}")
      continue
    build = parse if _sections(hints[name]) else _typed
    arguments[name] = build(values[name], hints[name], f"{at}.{name}")
  try:
    return cls(**arguments)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{at}: {error}") from error


def complete(config: ConfigDict, cls: Any = RunConfig) -> ConfigDict:
  """Adds every default that a config leaves out: flags set what is there only.

  A default of None is not added, since a flag has the type of what it replaces.
  `parse` builds the same as before.

  Args:
    config: the keys of a section, changed in place.
    cls: its dataclass, as for `parse`.

  Returns:
    The same config.
  """
  cls = _best_match(config, _sections(cls))
  known = dict(config.items())
  if hasattr(cls, "of_older"):
    known = cls.of_older(known)
  hints = typing.get_type_hints(cls)
  with config.unlocked():
    for field in dataclasses.fields(cls):
      name, default = field.name, field.default
      if name in config:
        if _sections(hints[name]) and isinstance(config[name], ConfigDict):
          complete(config[name], hints[name])
      elif name not in known and default not in (dataclasses.MISSING, None):
        if dataclasses.is_dataclass(default):
          default = ConfigDict(dataclasses.asdict(default))
        config[name] = default
  return config


def _sections(kind: Any) -> list[type]:
  """The dataclasses that an annotation allows: itself, or those of a union."""
  members = typing.get_args(kind) or (kind,)
  return [member for member in members if dataclasses.is_dataclass(member)]


def _best_match(values: Mapping[str, Any], classes: list[type]) -> type:
  """The class that has most of the keys as fields."""

  def shared(cls):
    return sum(field.name in values for field in dataclasses.fields(cls))

  return max(classes, key=shared)


def _typed(value: Any, kind: Any, at: str) -> Any:
  """Checks a plain value; whole numbers pass as floats, lists as tuples."""
  if isinstance(kind, types.UnionType):  # What an older version wrote passes.
    kinds = typing.get_args(kind)
    kind = type(value) if type(value) in kinds else kinds[0]
  origin = typing.get_origin(kind) or kind
  takes = {float: (int, float), tuple: (tuple, list)}.get(origin, origin)
  if isinstance(value, bool) != (origin is bool) or not isinstance(
    value, takes
  ):
    raise ValueError(f"{at} = {value!r} must be of type {origin.__name__}")
  return origin(value)


def to_dict(config: Any) -> Any:
  """A dataclass (or None) as plain JSON values."""
  return json.loads(json.dumps(config, default=dataclasses.asdict))


def save(config: RunConfig, workdir: epath.PathLike) -> None:
  """Writes `config.json`, whole or not at all."""
  text = json.dumps(to_dict(config), indent=2) + "\n"
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


def differences(old: RunConfig, new: RunConfig) -> list[str]:
  """Lines "key: old -> new" for every value that differs."""
  a, b = _flat(to_dict(old)), _flat(to_dict(new))
  missing = "(none)"
  return [
    f"{key}: {a.get(key, missing)!r} -> {b.get(key, missing)!r}"
    for key in sorted(a.keys() | b.keys())
    if a.get(key, missing) != b.get(key, missing)
  ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in values.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat
