"""The sampler: noise to patches, one jitted program per shape.

B rows, L tokens, N samples a row, S text tokens a row, P patch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.extrapolation import Extrapolation
from lumina_jax.flow import guidance, ode
from lumina_jax.flow.noise import token_noise
from lumina_jax.network import Network, Params
from lumina_jax.parallel.mesh import RULES
from lumina_jax.tokens import PATCH, Condition, Tokens, per_token

PATCHES = ("act_batch", "act_length", None)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How to sample unless the caller says otherwise.

  Attributes:
    solver: a name of `ode.SOLVERS`.
    num_inference_steps: integration steps; midpoint and heun evaluate the
      network twice a step, rk4 four times, and guidance doubles each.
    guidance_scale: 1 = none.
    shift: of the time grid; above 1 spends more steps near noise.
    size_rule: "digits" reads rows and columns off the prompt; "fixed" takes
      height and width below.
    height: for "fixed", of what the network draws: pixels, or latents.
    width: likewise.
    frames: of a network that draws videos; others have none and take no notice.
    ladder: budgets (tokens, words, samples) of a row, smallest first. A call
      runs on the first rung that its largest picture fits; one program each.
      A class is one word. () is for pictures of any size, one to a row, whose
      tokens are rounded up eight steps an octave.
    rows: B of every batch; what pictures leave of it is padding. On a mesh rows
      and tokens are rounded up to what divides over it.
    guidance_channels: of the latents, the first so many are guided; 0 = all.
      The original guides three of four, so its scales mean that.
    grid: of the times: "uniform", or "diffusers" as its Euler scheduler has it.
    beyond: sizes beyond those of training; None = they are drawn as any other.
  """

  solver: str
  num_inference_steps: int
  guidance_scale: float
  shift: float
  size_rule: str
  height: int
  width: int
  ladder: tuple[tuple[int, int, int], ...]
  rows: int
  guidance_channels: int = 0
  grid: str = "uniform"
  beyond: Extrapolation | None = None
  frames: int = 1

  def __post_init__(self):
    ladder = tuple(tuple(rung) for rung in self.ladder)
    object.__setattr__(self, "ladder", ladder)
    ode.solver(self.solver)
    if self.size_rule not in ("digits", "fixed"):
      raise ValueError(f"size_rule {self.size_rule!r}: use 'digits' or 'fixed'")
    if self.grid not in ("uniform", "diffusers"):
      raise ValueError(f"grid {self.grid!r}: use 'uniform' or 'diffusers'")
    if self.guidance_channels < 0:
      raise ValueError(
        f"guidance_channels = {self.guidance_channels}: 0 for all, or how many"
      )
    if list(ladder) != sorted(ladder):
      raise ValueError(f"ladder {ladder}: budgets, smallest first")
    if any(len(rung) != 3 or min(rung) < 1 for rung in ladder):
      raise ValueError(f"ladder {ladder}: rungs are (tokens, words, samples)")
    if self.frames < 1:
      raise ValueError(f"frames = {self.frames}: must be positive")
    if self.rows < 1 or self.num_inference_steps < 1:
      raise ValueError(
        f"rows = {self.rows} and num_inference_steps = "
        f"{self.num_inference_steps} must be positive"
      )
    if not (self.shift > 0 and math.isfinite(self.shift)):
      raise ValueError(f"shift = {self.shift} must be positive and finite")


class Request(NamedTuple):
  """What to sample, all traced: other values never recompile.

  Attributes:
    tokens: layout of the rows; the patches are not read.
    condition: prompt codes or features, `sample_ids` of the samples and, where
      scores are scaled, `attention_scale`.
    negative: likewise, to steer away from; None = no guidance at all.
    seeds: `u32[B, N]`; with a sample's id, a seed fixes its noise.
    guidance_scale: `f32[B, N]`.
    guided: `f32[P]`, 1 for the values of a patch that guidance acts on, else 0.
    times: `f32[steps + 1]` grid from 0 to 1.
    positions: how they are stretched, a rule of `f32[B, N]`; None = not at all.
    start: `f32[B, L, P]` to begin with at times[0]; None = the seeds' noise.
  """

  tokens: Tokens
  condition: Condition
  negative: Condition | None
  seeds: jax.Array
  guidance_scale: jax.Array
  guided: jax.Array
  times: jax.Array
  positions: RopeScaling | None = None
  start: jax.Array | None = None


@functools.partial(jax.jit, static_argnames=("network", "solver"))
def sample(
  params: Params, request: Request, *, network: Network, solver: ode.Tableau
) -> jax.Array:
  """Solves dx/dt = v(x, t) from noise to data.

  Args:
    params: of the network.
    request: what to sample.
    network: predicts the velocity.
    solver: one of `ode.SOLVERS`.

  Returns:
    `f32[B, L, P]` patches, zero on separators and padding.
  """
  with nn.logical_axis_rules(RULES):
    tokens, condition = request.tokens, request.condition
    cfg, rule = network.model, request.positions
    x = request.start
    if x is None:
      x = _noise(request, cfg.patch_dim)
    x = nn.with_logical_constraint(x, PATCHES)
    condition = network.encode(params, condition)
    guided = request.negative is not None
    if guided:
      negative = network.encode(params, request.negative)
      # One batch for both branches, conditional rows first.
      tokens, condition, rule = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]),
        (tokens, condition, rule),
        (tokens, negative, rule),
      )

    def velocity(x, t):
      time = jnp.full(condition.sample_ids.shape, t)
      at = condition._replace(time=time)
      if rule is not None:
        size = cfg.head_dim, cfg.position_axes, cfg.rope_theta
        at = at._replace(rope_rates=rule.rates(time, *size))
      return network.velocity(params, tokens._replace(patches=x), at)

    if guided:
      scale = per_token(request.guidance_scale, request.tokens.segments)
      scale = 1 + (scale[..., None] - 1) * request.guided
      velocity = guidance.classifier_free(velocity, scale)
    return ode.solve(velocity, x, request.times, solver)


@functools.partial(jax.jit, static_argnames="network")
def noise(request: Request, *, network: Network) -> jax.Array:
  """What `sample` begins with: `f32[B, L, P]`."""
  return _noise(request, network.model.patch_dim)


def _noise(request: Request, patch_dim: int) -> jax.Array:
  def key(seed, sample_id):
    return jax.random.fold_in(jax.random.key(seed), sample_id)

  keys = jax.vmap(jax.vmap(key))(request.seeds, request.condition.sample_ids)
  tokens = request.tokens
  noise = token_noise(keys, tokens.segments, patch_dim)
  real = (tokens.kinds == PATCH) & (tokens.segments != 0)
  return jnp.where(real[..., None], noise, 0)
