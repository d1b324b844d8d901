"""The jitted sampler: noise to patches, one program per shape.

B rows, L tokens, N samples a row, P patch. With guidance both branches run as
one batch of 2 B rows, the conditional ones first.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.flow.guidance import Guidance, classifier_free
from lumina_jax.flow.noise import fold_in_time, token_noise
from lumina_jax.flow.ode import Solver, State, Velocity
from lumina_jax.flow.path import interpolate
from lumina_jax.flow.samples import RowMemory, Samples, rows
from lumina_jax.model.network import Constants, Network, Params
from lumina_jax.parallel.mesh import RULES
from lumina_jax.tokens import PATCH, Condition, Tokens, per_token

PATCHES = ("act_batch", "act_length", None)


@dataclasses.dataclass(frozen=True)
class Program:
  """The static part of a compiled sampler; shapes of its inputs are the rest.

  Attributes:
    network: predicts the velocity.
    solver: one of `solvers.SOLVERS`.
    groups: groups of sampling options, which change the velocity.
  """

  network: Network
  solver: Solver
  groups: tuple[Any, ...] = ()


class Inputs(NamedTuple):
  """A batch to sample, all traced: other values never recompile.

  Attributes:
    tokens: layout of the rows; nothing reads the patches.
    condition: codes or features of the prompts, `sample_ids` and, if scores are
      scaled, `attention_scale`.
    negative: the condition of negative prompts; None = no guidance.
    seeds: `u32[B, N]`; with a sample's id, a seed fixes its noise.
    guidance: scale and limits, of `f32[B, N]` and channels `f32[P]`.
    times: `f32[steps + 1, B, N]`, a grid from 0 to 1 for each sample.
    positions: a RoPE rule of `f32[B, N]`; None = positions as trained.
    latents: initial latents `f32[B, L, P]`; None = the seeds' noise.
    initial: `f32[B, L, P]` of initial samples; the solve starts on the path
      between noise and these, at times[0]. None = noise alone.
  """

  tokens: Tokens
  condition: Condition
  negative: Condition | None
  seeds: jax.Array
  guidance: Guidance
  times: jax.Array
  positions: RopeScaling | None = None
  latents: jax.Array | None = None
  initial: jax.Array | None = None


@functools.partial(jax.jit, static_argnames="program")
def sample(params: Params, inputs: Inputs, *, program: Program) -> State:
  """Solves dx/dt = v(x, t) from noise to data.

  Returns:
    The last state without memories: x `f32[B, L, P]`, the patches, zero on
    separators and padding; evaluations; and behind `bool[B, N]`.
  """
  state, constants = begin(params, inputs, program=program)
  state = advance(params, inputs, state, constants, program=program)
  return state._replace(solver_memory=(), velocity_memory=())


@functools.partial(jax.jit, static_argnames="program")
def begin(
  params: Params, inputs: Inputs, *, program: Program
) -> tuple[State, Constants]:
  """The first state, and the constants of the network for all states."""
  network, t = program.network, inputs.times[0]
  x = inputs.latents
  if x is None:
    x = _noise(inputs, _keys(inputs), network.model.patch_dim)
  if inputs.initial is not None:
    share = per_token(t[..., None], inputs.tokens.segments)
    x = interpolate(
      x, inputs.initial, share, network.objective.probability_path
    )
  found = constants(params, inputs, program=program)
  memory = network.first_memory(_branches(inputs, inputs.tokens), found)
  state = program.solver.start(x, t, memory)
  return state, found


@functools.partial(jax.jit, static_argnames="program")
def constants(params: Params, inputs: Inputs, *, program: Program) -> Constants:
  """Values that no evaluation changes, for both branches."""
  condition = inputs.condition
  if inputs.negative is not None:
    condition = _concatenate(condition, inputs.negative)
  with nn.logical_axis_rules(RULES):
    return program.network.constants(params, condition)


@functools.partial(jax.jit, static_argnames="program")
def advance(
  params: Params,
  inputs: Inputs,
  state: State,
  constants: Constants,
  *,
  program: Program,
) -> State:
  """Continues from a state along the times of the inputs."""
  tokens, keys = inputs.tokens, _keys(inputs)
  patch_dim = program.network.model.patch_dim
  samples = rows(tokens.segments, _real(tokens), inputs.seeds.shape[1])
  samples = samples._replace(
    normal=lambda t: _noise(inputs, fold_in_time(keys, t), patch_dim)
  )
  with nn.logical_axis_rules(RULES):
    x = nn.with_logical_constraint(state.x, PATCHES)
    velocity = _velocity(params, inputs, constants, program.network, samples)
    return program.solver.integrate(
      velocity, state._replace(x=x), inputs.times, samples
    )


def _velocity(
  params: Params,
  inputs: Inputs,
  constants: Constants,
  network: Network,
  samples: Samples,
) -> Velocity:
  """v(x, t, memory) of patches `f32[B, L, P]` at times `f32[B, N]`, guided."""
  cfg, tokens, positions = network.model, inputs.tokens, inputs.positions
  size = cfg.head_dim, cfg.position_axes, cfg.rope_theta

  def evaluate(x, t, memory, tokens, constants, branches=1):
    repeat = lambda a: jnp.concatenate([a] * branches) if branches > 1 else a  # noqa: E731
    condition = constants.condition._replace(time=repeat(t))
    if positions is not None:
      rates = repeat(positions.rates(t, *size))
      condition = condition._replace(rope_rates=rates)
    tokens = tokens._replace(patches=repeat(x))
    constants = constants._replace(condition=condition)
    return network.velocity(params, tokens, constants, memory)

  if inputs.negative is None:
    return lambda x, t, memory: evaluate(x, t, memory, tokens, constants)
  count = len(inputs.seeds)
  pair, first = _branches(inputs, tokens), constants.first(count)

  def both(x, t, memory):
    v, memory = evaluate(x, t, memory, pair, constants, branches=2)
    return tuple(jnp.split(v, 2)), memory

  def conditional(x, t, memory):
    if not isinstance(memory, RowMemory):
      return evaluate(x, t, memory, tokens, first)
    v, part = evaluate(x, t, memory.first(count), tokens, first)
    return v, memory.with_first(part)

  return classifier_free(both, conditional, inputs.guidance, samples)


def _branches(inputs: Inputs, tokens: Tokens) -> Tokens:
  """The layout of all rows that one evaluation takes."""
  return tokens if inputs.negative is None else _concatenate(tokens, tokens)


def _concatenate(first: Any, second: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _real(tokens: Tokens) -> jax.Array:
  return (tokens.kinds == PATCH) & (tokens.segments != 0)


def _keys(inputs: Inputs) -> jax.Array:
  """`key[B, N]` of the samples, each from its seed and id."""

  def key(seed, sample_id):
    return jax.random.fold_in(jax.random.key(seed), sample_id)

  return jax.vmap(jax.vmap(key))(inputs.seeds, inputs.condition.sample_ids)


def _noise(inputs: Inputs, keys: jax.Array, patch_dim: int) -> jax.Array:
  """Noise `f32[B, L, P]` of those keys, zero on separators and padding."""
  tokens = inputs.tokens
  values = token_noise(keys, tokens.segments, patch_dim)
  return jnp.where(_real(tokens)[..., None], values, 0)
