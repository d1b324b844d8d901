"""A job: one program, one machine, one mesh.

L tokens, S words and N samples per row.
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
from lumina_jax.sampling.options import configured_solver
from lumina_jax.training.run_config import RunConfig

TEXT_MULTIPLE = 128  # TPU kernels need text of a multiple of 128.
MIN_TOKENS = 8192  # The default mesh leaves as many tokens on each device.
GUIDANCE_BRANCHES = 2  # evaluations per row: conditional and unconditional


@dataclasses.dataclass(frozen=True)
class Job:
  """A program to compile.

  Attributes:
    config: run config; its mesh is ignored.
    topology: the machine.
    mesh_shape: devices along each axis of the mesh.
    rows: B of all shards together.
    budget: (tokens, words, samples) per row.
    sample: compiles the sampler, with guidance and bfloat16 parameters, instead
      of a training step.

  Raises:
    ValueError: if rows, tokens or heads do not divide over the mesh.
  """

  config: RunConfig
  topology: Topology
  mesh_shape: tuple[int, int, int, int]
  rows: int
  budget: tuple[int, int, int]
  sample: bool = False

  def __post_init__(self):
    tokens, words, samples = self.budget
    if min(self.rows, tokens, words, samples) < 1:
      raise ValueError(f"rows = {self.rows} of {self.budget}: must be positive")
    if self.rows % self.row_shards:
      raise ValueError(
        f"{self.rows} rows do not divide over data x fsdp = {self.row_shards} "
        "devices; set --rows (per shard), or another --mesh"
      )
    axes = self.axis_sizes
    if tokens % axes["context"]:
      raise ValueError(
        f"{tokens} tokens of a row do not divide over context = "
        f"{axes['context']} devices; choose a multiple, or another --mesh"
      )
    for name in ("heads", "kv_heads"):
      heads = getattr(self.model, name)
      if heads % axes["tensor"]:
        raise ValueError(
          f"model.{name} = {heads} do not divide over tensor = "
          f"{axes['tensor']} devices; choose another --mesh"
        )

  @property
  def model(self) -> ModelConfig:
    """The backbone."""
    return self.config.model

  @property
  def axis_sizes(self) -> dict[str, int]:
    """Devices along each axis, by name."""
    return dict(zip(AXES, self.mesh_shape, strict=True))

  @property
  def row_shards(self) -> int:
    """Shards of the batch: data x fsdp."""
    return self.axis_sizes["data"] * self.axis_sizes["fsdp"]

  @property
  def rows_per_shard(self) -> int:
    """Rows that each data x fsdp shard holds."""
    return self.rows // self.row_shards

  @property
  def devices(self) -> int:
    """Number of devices of the machine."""
    return len(self.topology.devices)

  @property
  def device_tokens(self) -> int:
    """Tokens of all rows on one device."""
    return self.rows_per_shard * self.budget[0] // self.axis_sizes["context"]

  @property
  def forward_passes(self) -> int:
    """1 for a training step; all evaluations of a call of the sampler."""
    if not self.sample:
      return 1
    options = self.config.sampling
    return options.steps * configured_solver(options).evaluations

  @functools.cached_property
  def flops(self) -> flops.Flops:
    """FLOPs of one forward pass of the backbone, over all devices."""
    tokens, words, samples = self.budget
    rows = self.rows * (GUIDANCE_BRANCHES if self.sample else 1)
    return flops.count(self.model, rows, tokens, words, samples)

  def make_mesh(self) -> Mesh:
    """The mesh of the machine, in the shape of this job."""
    return make_mesh(MeshConfig(*self.mesh_shape), list(self.topology.devices))

  def replace(self, **fields: Any) -> Job:
    """A changed job; `remat` and `rows_per_shard` count as fields too."""
    config = self.config
    remat = fields.pop("remat", None)
    if remat is not None:
      model = dataclasses.replace(config.model, remat=remat)
      config = dataclasses.replace(config, model=model)
    rows = fields.pop("rows_per_shard", None)
    if rows:
      shape = fields.get("mesh_shape", self.mesh_shape)
      fields["rows"] = rows * shape[0] * shape[1]
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
  """A job from options; None takes the config's value or a default.

  With `tokens`, a row is one sample of that many tokens, and each shard has
  `rows` rows. Without, rows and their budget are those of the config.

  Raises:
    ValueError: if options contradict each other, naming them.
  """
  budget, batch = _config_batch(config, sample, required=tokens is None)
  if tokens is not None:
    budget = tokens, _round_words(config), 1
  if words is not None:
    if words < 1 or (words % TEXT_MULTIPLE and tokens is not None):
      near = max(1, -(-words // TEXT_MULTIPLE)) * TEXT_MULTIPLE
      raise ValueError(
        f"words = {words}: use a multiple of {TEXT_MULTIPLE}, e.g. {near}"
      )
    budget = budget[0], words, budget[2]
  if mesh is None and tokens is not None:
    shape = default_mesh_shape(config, len(topology.devices), tokens)
  else:
    made = make_mesh(mesh or config.mesh, list(topology.devices))
    shape = tuple(made.shape[axis] for axis in AXES)
  if tokens is not None or rows is not None:
    batch = (1 if rows is None else rows) * shape[0] * shape[1]
  job = Job(config, topology, shape, batch, budget, sample)
  return job.replace(remat=remat)


def _config_batch(
  config: RunConfig, sample: bool, required: bool
) -> tuple[tuple[int, int, int], int]:
  """Budget per row, and rows."""
  if not sample:
    return config.data.budget, config.training.batch_rows
  if not config.sizes.ladder:
    if required:
      raise ValueError("sizes.ladder is empty: set --tokens")
    return (1, 1, 1), 1
  return config.sizes.ladder[-1], config.sizes.rows


def _round_words(config: RunConfig) -> int:
  """S for a row of one sample; a class label is one word."""
  encoder = config.text_encoder
  if encoder is None:
    return 1
  return -(-encoder.max_words // TEXT_MULTIPLE) * TEXT_MULTIPLE


def default_mesh_shape(
  config: RunConfig, devices: int, tokens: int
) -> tuple[int, int, int, int]:
  """The mesh for rows of this many tokens, if the user sets none.

  Context grows in powers of two while each device keeps `MIN_TOKENS`; then fsdp
  as far as the widths of the network divide; the rest is data.
  """
  context = 1
  while (
    devices % (2 * context) == 0
    and tokens % (2 * context) == 0
    and tokens // (2 * context) >= MIN_TOKENS
  ):
    context *= 2
  shards = max(1, max_parameter_shards(config) // context)
  fsdp = math.gcd(devices // context, shards)
  return devices // (context * fsdp), fsdp, context, 1


def max_parameter_shards(config: RunConfig) -> int:
  """The most devices, fsdp x context, that parameters can be sharded over."""
  model = config.model
  return math.gcd(model.width, model.text_width, model.cond_width)


@functools.lru_cache(maxsize=8)
def count_parameters(config: RunConfig) -> int:
  """Parameters of the network, with its text encoder."""
  return sum(x.size for x in jax.tree.leaves(config.network.shapes()))
