"""A job, compiled: what it takes, and whether that is there.

P patch, A position axes, K numbers that spell a word.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from lumina_jax.flow.guidance import Guidance
from lumina_jax.parallel import inventory
from lumina_jax.parallel import mesh as meshes
from lumina_jax.parallel.compiled import Program, TooLarge, compile_program
from lumina_jax.planning.job import Job, parameters
from lumina_jax.sampling import program as sampler
from lumina_jax.tokens import Condition, Tokens
from lumina_jax.training import step as steps
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import abstract_state

Shape = jax.ShapeDtypeStruct
PER_SAMPLE = ("scale", "renorm")  # Of Guidance.


@dataclasses.dataclass(frozen=True)
class Parts:
  """Bytes of one device: parameters, their average, moments, and the batch."""

  parameters: int
  average: int
  optimizer: int
  inputs: int

  @property
  def state(self) -> int:
    return self.parameters + self.average + self.optimizer


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a job.

  Attributes:
    job: that was compiled.
    parts: of the memory that it begins with.
    result: what it takes, or why it was refused.
  """

  job: Job
  parts: Parts
  result: Program | TooLarge

  @property
  def usable(self) -> int:
    """Bytes of a device, 0 = no limit."""
    if isinstance(self.result, TooLarge) and self.result.usable:
      return self.result.usable
    return self.job.topology.chip.usable

  @property
  def peak(self) -> int:
    """Bytes of a device; if it was refused, what the compiler asked for."""
    if isinstance(self.result, TooLarge):
      return self.result.needed
    return self.result.peak

  @property
  def fits(self) -> bool:
    if isinstance(self.result, TooLarge):
      return False
    return not self.usable or self.peak <= self.usable


def compile_job(job: Job) -> Outcome:
  """Compiles the real program for the job's machine, from shapes alone.

  Raises:
    ValueError: if the network does not divide over the mesh.
    jax.errors.JaxRuntimeError: whatever the compiler says but out of memory.
  """
  mesh = job.mesh()
  parts, lowered = (_sampler if job.sample else _step)(job, mesh)
  return Outcome(job, parts, compile_program(lowered, job.topology.devices))


def kept_bytes(job: Job) -> int:
  """Bytes of a device that stay from step to step.

  Parameters, average and two moments in float32 (the sampler: parameters in
  bfloat16), each spread over fsdp x context x tensor.
  """
  each = 2 if job.sample else 16
  return each * parameters(job.config) // math.prod(job.degrees[1:])


def state_bytes(job: Job) -> int:
  """Bytes of a device that every program of this kind needs, from below.

  What stays, and what the backward pass cannot do without.
  """
  return kept_bytes(job) + (0 if job.sample else saved_bytes(job))


def expected_bytes(job: Job) -> int:
  """Bytes of a device as estimated, rather too few than too many.

  The state, gradients in float32, what is saved, and one block at work with
  its cotangents. Programs of 0.8 and 5 billion parameters at 4096 tokens took
  1.07 to 1.16 times as much.
  """
  if job.sample:
    return state_bytes(job)
  gradients = 4 * parameters(job.config) // math.prod(job.degrees[1:])
  block = 2 * block_values(job) * job.local_tokens * itemsize(job)
  return state_bytes(job) + gradients + int(block)


def saved_bytes(job: Job) -> int:
  """Bytes of a device that wait for the backward pass, see `remat.POLICIES`."""
  model = job.model
  values = {
    "none": block_values(job),
    "attention": model.width + model.width / job.degree["tensor"],
    "offload_hidden": 0,
  }.get(model.remat, model.width)
  return int(model.depth * job.local_tokens * values * itemsize(job))


def block_values(job: Job) -> float:
  """What the matrix products and gates of a block read, values a token."""
  model = job.model
  keys_values = 2 * model.kv_heads * model.head_dim
  values = 6 * model.width + 3 * model.ffn_width + keys_values
  return values / job.degree["tensor"]


def itemsize(job: Job) -> int:
  return jnp.dtype(job.model.dtype).itemsize


def _step(job: Job, mesh: Mesh) -> tuple[Parts, jax.stages.Lowered]:
  """A training step, its state and its batch."""
  config, network = job.config, job.config.network
  tx = make_optimizer(config.optimizer, config.training.steps)
  # Rows that were asked for here are those of one microbatch.
  whole = job.rows == config.training.batch_rows
  pure = steps.train_step_for(config, tx, None if whole else 1)
  tokens, words, samples = job.budget
  batch = (
    _tokens(job, job.rows, tokens),
    _codes(job, job.rows, words, samples),
  )
  # Not under the mesh: a topology has no device to make a key on.
  state = abstract_state(network, tx, mesh)
  placed = _placed(batch, steps.batch_shardings(batch, mesh))
  step = steps.jit_train_step(pure, network, tx, mesh, batch)
  with jax.set_mesh(mesh):
    lowered = step.lower(state, placed)
  parts = Parts(
    _each(state.params),
    _each(state.ema),
    _each(state.opt_state),
    _each(placed),
  )
  return parts, lowered


def _sampler(job: Job, mesh: Mesh) -> tuple[Parts, jax.stages.Lowered]:
  """A call of the sampler, its parameters and its request."""
  config, network = job.config, job.config.network
  tokens, words, samples = job.budget
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  half = jax.tree.map(lambda x: Shape(x.shape, jnp.bfloat16), nn.unbox(boxed))
  params = _placed(half, meshes.shardings(boxed, mesh))
  rows = (job.rows, samples)
  condition = _codes(job, job.rows, words, samples)
  request = sampler.Request(
    tokens=_tokens(job, job.rows, tokens),
    condition=condition,
    negative=condition,
    seeds=Shape(rows, jnp.uint32),
    guidance=Guidance(
      **dict.fromkeys(PER_SAMPLE, Shape(rows, jnp.float32)),
      channels=Shape((job.model.patch_dim,), jnp.float32),
    ),
    times=Shape((config.sampling.num_inference_steps + 1, *rows), jnp.float32),
  )
  everywhere = meshes.replicated(mesh)
  by_row = NamedSharding(mesh, meshes.ROWS)
  where = jax.tree.map(lambda _: by_row, request)
  where = where._replace(
    tokens=steps.batch_shardings((request.tokens, condition), mesh)[0],
    guidance=where.guidance._replace(channels=everywhere),
    times=everywhere,
  )
  placed = _placed(request, where)
  with jax.set_mesh(mesh):
    lowered = sampler.sample.lower(
      params,
      placed,
      network=network,
      solver=config.sampling.method,
    )
  return Parts(_each(params), 0, 0, _each(placed)), lowered


def _tokens(job: Job, rows: int, length: int) -> Tokens:
  """Rows as `data_pipelines.batches` gives them."""
  model, each = job.model, (rows, length)
  return Tokens(
    patches=Shape((*each, model.patch_dim), jnp.float32),
    ids=Shape((*each, model.position_axes), jnp.int32),
    kinds=Shape(each, jnp.int32),
    segments=Shape(each, jnp.int32),
  )


def _codes(job: Job, rows: int, words: int, samples: int) -> Condition:
  """Likewise, prompts spelled out."""
  width = job.config.network.code_width
  return Condition(
    text=Shape((rows, words, width), jnp.int32),
    text_segments=Shape((rows, words), jnp.int32),
    sample_ids=Shape((rows, samples), jnp.int32),
  )


def _each(tree: Any) -> int:
  """Bytes of one device."""
  return inventory.weigh(tree)[0]


def _placed(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, s: Shape(x.shape, x.dtype, sharding=s), tree, shardings
  )
