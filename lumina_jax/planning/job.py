"""One program, one machine, one mesh: what shall be compiled.

L tokens, S words and N samples a row.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import Mesh

from lumina_jax.backbone import ModelConfig, flops
from lumina_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from lumina_jax.parallel.topology import Topology
from lumina_jax.training.run_config import RunConfig

WORDS = 128  # Text is rounded up to a multiple: TPU kernels want that.
FEWEST = 8192  # Tokens of a device below which a row is not split further.
EACH = 2  # Rows that guidance makes of one.


@dataclasses.dataclass(frozen=True)
class Job:
  """What to compile.

  Attributes:
    config: of the run; its mesh is not read.
    topology: the machine.
    degrees: devices along each axis of the mesh.
    rows: B of all shards together.
    budget: (tokens, words, samples) of a row.
    sample: a call of the sampler with guidance, parameters in bfloat16, in
      place of a training step.

  Raises:
    ValueError: if rows, tokens or heads do not divide over the mesh.
  """

  config: RunConfig
  topology: Topology
  degrees: tuple[int, int, int, int]
  rows: int
  budget: tuple[int, int, int]
  sample: bool = False

  def __post_init__(self):
    tokens, words, samples = self.budget
    if min(self.rows, tokens, words, samples) < 1:
      raise ValueError(f"rows = {self.rows} of {self.budget}: must be positive")
    if self.rows % self.shards:
      raise ValueError(
        f"{self.rows} rows do not divide over data x fsdp = {self.shards} "
        "devices; give --rows (of each of them), or another --mesh"
      )
    if tokens % self.degree["context"]:
      raise ValueError(
        f"{tokens} tokens of a row do not divide over context = "
        f"{self.degree['context']} devices; choose a multiple, or another "
        "--mesh"
      )
    for name in ("heads", "kv_heads"):
      heads = getattr(self.model, name)
      if heads % self.degree["tensor"]:
        raise ValueError(
          f"model.{name} = {heads} do not divide over tensor = "
          f"{self.degree['tensor']} devices; choose another --mesh"
        )

  @property
  def model(self) -> ModelConfig:
    return self.config.model

  @property
  def degree(self) -> dict[str, int]:
    """By name of the axis."""
    return dict(zip(AXES, self.degrees, strict=True))

  @property
  def shards(self) -> int:
    """Groups of devices that have rows of their own."""
    return self.degree["data"] * self.degree["fsdp"]

  @property
  def rows_each(self) -> int:
    """Rows of such a group."""
    return self.rows // self.shards

  @property
  def devices(self) -> int:
    return len(self.topology.devices)

  @property
  def local_tokens(self) -> int:
    """Tokens of a device, those of all its rows."""
    return self.rows_each * self.budget[0] // self.degree["context"]

  @property
  def passes(self) -> int:
    """Forward passes: of a step 1, of the sampler all that it runs."""
    sampling = self.config.sampling
    evaluations = sampling.method.evaluations
    return sampling.num_inference_steps * evaluations if self.sample else 1

  @functools.cached_property
  def flops(self) -> flops.Flops:
    """Of one forward pass of the backbone, over all devices."""
    tokens, words, samples = self.budget
    rows = self.rows * (EACH if self.sample else 1)
    return flops.count(self.model, rows, tokens, words, samples)

  def mesh(self) -> Mesh:
    """The devices, laid out."""
    return make_mesh(MeshConfig(*self.degrees), list(self.topology.devices))

  def change(self, **fields: Any) -> Job:
    """Another job; `remat` is of the model, `rows_each` stands for `rows`."""
    config = self.config
    if remat := fields.pop("remat", None):
      model = dataclasses.replace(config.model, remat=remat)
      config = dataclasses.replace(config, model=model)
    each = fields.pop("rows_each", None)
    if each:
      degrees = fields.get("degrees", self.degrees)
      fields["rows"] = each * degrees[0] * degrees[1]
    return dataclasses.replace(self, config=config, **fields)


def make_job(
  config: RunConfig,
  topology: Topology,
  *,
  tokens: int | None = None,
  mesh: MeshConfig | None = None,
  remat: str | None = None,
  rows: int | None = None,
  words: int | None = None,
  sample: bool = False,
) -> Job:
  """What a user asks for; what they leave out is the config's or the rule's.

  With `tokens`, a row is one sample of so many and each shard has `rows` of
  them; without, rows and their budget are those of the config.

  Raises:
    ValueError: naming what does not go together.
  """
  if remat is not None:
    model = dataclasses.replace(config.model, remat=remat)
    config = dataclasses.replace(config, model=model)
  budget, batch = _of_config(config, sample, needed=tokens is None)
  if tokens is not None:
    budget = tokens, _round_words(config), 1
  if words is not None:
    if words < 1 or (words % WORDS and tokens is not None):
      near = max(1, -(-words // WORDS)) * WORDS
      raise ValueError(f"words = {words}: a multiple of {WORDS}, e.g. {near}")
    budget = budget[0], words, budget[2]
  if mesh is None and tokens is not None:
    degrees = default_degrees(config, len(topology.devices), tokens)
  else:
    laid_out = make_mesh(mesh or config.mesh, list(topology.devices))
    degrees = tuple(laid_out.shape[axis] for axis in AXES)
  if tokens is not None or rows is not None:
    batch = (1 if rows is None else rows) * degrees[0] * degrees[1]
  return Job(config, topology, degrees, batch, budget, sample)


def _of_config(
  config: RunConfig, sample: bool, needed: bool
) -> tuple[tuple[int, int, int], int]:
  """Budget of a row, and rows."""
  if not sample:
    return config.data.budget, config.training.batch_rows
  if not config.sampling.ladder:
    if needed:
      raise ValueError("sampling.ladder is (): give --tokens")
    return (1, 1, 1), 1
  return config.sampling.ladder[-1], config.sampling.rows


def _round_words(config: RunConfig) -> int:
  """S of a row of one sample; a class is one word."""
  encoder = config.text_encoder
  if encoder is None:
    return 1
  return -(-encoder.max_words // WORDS) * WORDS


def default_degrees(
  config: RunConfig, devices: int, tokens: int
) -> tuple[int, int, int, int]:
  """The mesh of a row of so many tokens, if none is asked for.

  Context as far as each device keeps 8192 tokens, in powers of two; then fsdp
  as far as the widths of the network divide; the rest is data.
  """
  context = 1
  while (
    devices % (2 * context) == 0
    and tokens % (2 * context) == 0
    and tokens // (2 * context) >= FEWEST
  ):
    context *= 2
  fsdp = math.gcd(devices // context, max(1, parameter_ways(config) // context))
  return devices // (context * fsdp), fsdp, context, 1


def parameter_ways(config: RunConfig) -> int:
  """Over how many devices, fsdp x context, the parameters can be spread."""
  model = config.model
  return math.gcd(model.width, model.text_width, model.cond_width)


@functools.lru_cache(maxsize=8)
def parameters(config: RunConfig) -> int:
  """How many parameters a network has, its text encoder included."""
  return sum(x.size for x in jax.tree.leaves(config.network.shapes()))
