"""Compiles a job: its memory and collectives, and whether it fits.

P patch, A position axes, K numbers that encode a word.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from lumina_jax.flow.guidance import Guidance
from lumina_jax.parallel import mesh as meshes
from lumina_jax.parallel.compiled import OutOfMemory, Program, compile_program
from lumina_jax.parallel.placement import with_shardings
from lumina_jax.parallel.sharding_table import tree_bytes
from lumina_jax.planning.job import Job
from lumina_jax.sampling import overrides
from lumina_jax.sampling import program as sampler
from lumina_jax.sampling.options import configured_solver
from lumina_jax.tokens import Condition, Tokens
from lumina_jax.training import step as steps
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import abstract_state

Shape = jax.ShapeDtypeStruct
PER_SAMPLE = ("scale", "renorm")  # fields of Guidance


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Bytes per device of a program's arguments.

  Attributes:
    parameters: the network's parameters.
    ema: their exponential moving average.
    optimizer: the optimizer's moments.
    inputs: the batch.
  """

  parameters: int
  ema: int
  optimizer: int
  inputs: int

  @property
  def state(self) -> int:
    """Bytes that stay between steps."""
    return self.parameters + self.ema + self.optimizer


@dataclasses.dataclass(frozen=True)
class CompiledJob:
  """The result of compiling a job.

  Attributes:
    job: the job.
    arguments: memory of its arguments.
    result: the program, or the compiler's refusal.
  """

  job: Job
  arguments: Arguments
  result: Program | OutOfMemory

  @property
  def usable(self) -> int:
    """Bytes that a program can fill per device; 0 = no limit."""
    if isinstance(self.result, OutOfMemory) and self.result.usable:
      return self.result.usable
    return self.job.topology.chip.usable

  @property
  def peak(self) -> int:
    """Peak bytes per device; if refused, what the compiler asked for."""
    if isinstance(self.result, OutOfMemory):
      return self.result.needed
    return self.result.peak

  @property
  def fits(self) -> bool:
    """Whether the compiled program fits the memory of a device."""
    if isinstance(self.result, OutOfMemory):
      return False
    return not self.usable or self.peak <= self.usable


def compile_job(job: Job) -> CompiledJob:
  """Compiles the real program for the job's machine, from shapes alone.

  Raises:
    ValueError: if the network does not divide over the mesh.
    jax.errors.JaxRuntimeError: any compiler error other than out of memory.
  """
  lower = _lower_sampler if job.sample else _lower_step
  arguments, lowered = lower(job, job.make_mesh())
  result = compile_program(lowered, job.topology.devices)
  return CompiledJob(job, arguments, result)


def _lower_step(job: Job, mesh: Mesh) -> tuple[Arguments, jax.stages.Lowered]:
  """Lowers a training step."""
  config, network = job.config, job.config.network
  tx = make_optimizer(config.optimizer, config.training.steps)
  # Rows other than the config's are those of one microbatch.
  whole = job.rows == config.training.batch_rows
  pure = steps.train_step_for(config, tx, None if whole else 1)
  tokens, words, samples = job.budget
  batch = (
    _tokens(job, job.rows, tokens),
    _codes(job, job.rows, words, samples),
  )
  # Outside of the mesh: a topology has no device to create a key on.
  state = abstract_state(network, tx, mesh)
  placed = with_shardings(batch, steps.batch_shardings(batch, mesh))
  step = steps.jit_train_step(pure, network, tx, mesh, batch)
  with jax.set_mesh(mesh):
    lowered = step.lower(state, placed)
  trees = state.params, state.ema, state.opt_state, placed
  return Arguments(*map(_device_bytes, trees)), lowered


def _lower_sampler(
  job: Job, mesh: Mesh
) -> tuple[Arguments, jax.stages.Lowered]:
  """Lowers a call of the sampler."""
  config, network = job.config, job.config.network
  tokens, words, samples = job.budget
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  half = jax.tree.map(lambda x: Shape(x.shape, jnp.bfloat16), nn.unbox(boxed))
  params = with_shardings(half, meshes.shardings(boxed, mesh))
  rows = (job.rows, samples)
  condition = _codes(job, job.rows, words, samples)
  inputs = sampler.Inputs(
    tokens=_tokens(job, job.rows, tokens),
    condition=condition,
    negative=condition,
    seeds=Shape(rows, jnp.uint32),
    guidance=Guidance(
      **dict.fromkeys(PER_SAMPLE, Shape(rows, jnp.float32)),
      channels=Shape((job.model.patch_dim,), jnp.float32),
    ),
    times=Shape((config.sampling.steps + 1, *rows), jnp.float32),
  )
  everywhere = meshes.replicated(mesh)
  by_row = NamedSharding(mesh, meshes.ROWS)
  where = jax.tree.map(lambda _: by_row, inputs)
  where = where._replace(
    tokens=steps.batch_shardings((inputs.tokens, condition), mesh)[0],
    guidance=where.guidance._replace(channels=everywhere),
    times=everywhere,
  )
  placed = with_shardings(inputs, where)
  program = sampler.Program(
    network,
    configured_solver(config.sampling),
    overrides.groups(config.sampling),
  )
  with jax.set_mesh(mesh):
    lowered = sampler.sample.lower(params, placed, program=program)
  arguments = Arguments(_device_bytes(params), 0, 0, _device_bytes(placed))
  return arguments, lowered


def _tokens(job: Job, rows: int, length: int) -> Tokens:
  """Shapes of rows, as in `data_pipelines.batches`."""
  model, shape = job.model, (rows, length)
  return Tokens(
    patches=Shape((*shape, model.patch_dim), jnp.float32),
    ids=Shape((*shape, model.position_axes), jnp.int32),
    kinds=Shape(shape, jnp.int32),
    segments=Shape(shape, jnp.int32),
  )


def _codes(job: Job, rows: int, words: int, samples: int) -> Condition:
  """Shapes of encoded prompts."""
  width = job.config.network.code_width
  return Condition(
    text=Shape((rows, words, width), jnp.int32),
    text_segments=Shape((rows, words), jnp.int32),
    sample_ids=Shape((rows, samples), jnp.int32),
  )


def _device_bytes(tree: Any) -> int:
  return tree_bytes(tree)[0]
