"""The sampler: noise to patches, one jitted program per shape.

B rows, L tokens, N samples a row, S text tokens a row, P patch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.flow import ode, schedule, solvers
from lumina_jax.flow.guidance import Guidance, classifier_free
from lumina_jax.flow.noise import at_time, token_noise
from lumina_jax.flow.ode import Solver, State
from lumina_jax.flow.path import interpolate
from lumina_jax.flow.samples import Samples, rows
from lumina_jax.model.network import Network, Params
from lumina_jax.parallel.mesh import RULES
from lumina_jax.sampling.extrapolation import Extrapolation
from lumina_jax.tokens import PATCH, Condition, Tokens, per_token

PATCHES = ("act_batch", "act_length", None)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How to sample unless the caller says otherwise.

  Attributes:
    solver: a name of `solvers.SOLVERS`.
    num_inference_steps: integration steps; each evaluates the network once or
      as often as the solver has stages, and guidance doubles that. dopri5 goes
      from the first time to the last in steps of its own.
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
    schedule: of the times, a name of `schedule.SCHEDULES` or "diffusers", as
      its Euler scheduler has them.
    shift_tokens: tokens for which the shift is meant; it grows with the root of
      a picture's tokens. 0 = the same for all sizes.
    guidance_interval: times, from 0 (noise) to 1 (data), between which guidance
      acts; (0, 0.3) is what others call truncation at 0.3.
    guidance_renorm: the steered velocity gets no longer than so many times the
      conditional one; 0 = as long as it is.
    rtol: relative error that dopri5 allows in a step.
    atol: absolute error likewise, in units of the latents.
    diffusion: of the solvers that add noise, a name of `sde.FORMS`.
    last_step: of theirs, a name of `sde.LAST`.
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
  schedule: str = "uniform"
  shift_tokens: int = 0
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  guidance_renorm: float = 0.0
  rtol: float = 1e-3
  atol: float = 1e-6
  diffusion: str = "sigma"
  last_step: str = "tweedie"
  beyond: Extrapolation | None = None
  frames: int = 1

  @staticmethod
  def of_older(values: dict[str, Any]) -> dict[str, Any]:
    """What an older version wrote, as this one says it."""
    if "grid" not in values or "schedule" in values:
      return values
    values["schedule"] = values.pop("grid")
    beyond = values.get("beyond")
    if beyond and beyond["rule"] == "ntk":
      values["beyond"] = {**beyond, "rule": "ntk_plain"}
    return values

  def __post_init__(self):
    ladder = tuple(tuple(rung) for rung in self.ladder)
    object.__setattr__(self, "ladder", ladder)
    interval = tuple(float(t) for t in self.guidance_interval)
    object.__setattr__(self, "guidance_interval", interval)
    for name in (self.solver, "dopri5", "sde_euler"):
      self._configured(name)  # Whichever a call chooses in the end.
    if self.size_rule not in ("digits", "fixed"):
      raise ValueError(f"size_rule {self.size_rule!r}: use 'digits' or 'fixed'")
    if self.schedule != schedule.DIFFUSERS:
      schedule.find(self.schedule)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
      raise ValueError(
        f"guidance_interval = {interval}: two times from 0 (noise) to 1 (data),"
        " the first below the second"
      )
    if not 0 <= self.guidance_renorm < math.inf:
      raise ValueError(
        f"guidance_renorm = {self.guidance_renorm}: 0 for none, or how many "
        "times as long as the conditional velocity"
      )
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
    if self.shift_tokens < 0:
      raise ValueError(
        f"shift_tokens = {self.shift_tokens}: 0 for the same shift at all "
        "sizes, or the tokens for which it is meant"
      )

  @property
  def method(self) -> Solver:
    """The solver, told what concerns it."""
    return self._configured(self.solver)

  def _configured(self, name: str) -> Solver:
    return solvers.configured(
      name,
      rtol=self.rtol,
      atol=self.atol,
      form=self.diffusion,
      last=self.last_step,
    )


class Request(NamedTuple):
  """What to sample, all traced: other values never recompile.

  Attributes:
    tokens: layout of the rows; the patches are not read.
    condition: prompt codes or features, `sample_ids` of the samples and, where
      scores are scaled, `attention_scale`.
    negative: likewise, to steer away from; None = no guidance at all.
    seeds: `u32[B, N]`; with a sample's id, a seed fixes its noise.
    guidance: how far, when and where, of `f32[B, N]` and channels `f32[P]`.
    times: `f32[steps + 1, B, N]`, a grid from 0 to 1 for each sample.
    positions: how they are stretched, a rule of `f32[B, N]`; None = not at all.
    start: `f32[B, L, P]` in place of the seeds' noise; None = that.
    image: `f32[B, L, P]`, what the solve begins with a part of, as much as the
      path has at times[0]; None = with noise alone.
  """

  tokens: Tokens
  condition: Condition
  negative: Condition | None
  seeds: jax.Array
  guidance: Guidance
  times: jax.Array
  positions: RopeScaling | None = None
  start: jax.Array | None = None
  image: jax.Array | None = None


@functools.partial(jax.jit, static_argnames=("network", "solver"))
def sample(
  params: Params, request: Request, *, network: Network, solver: Solver
) -> State:
  """Solves dx/dt = v(x, t) from noise to data.

  Args:
    params: of the network.
    request: what to sample.
    network: predicts the velocity.
    solver: one of `solvers.SOLVERS`.

  Returns:
    The last state, without its memory: x `f32[B, L, P]`, the patches, zero on
    separators and padding; evaluations; and behind `bool[B, N]`.
  """
  state = begin(request, network=network, solver=solver)
  state = advance(params, request, state, network=network, solver=solver)
  return state._replace(memory=())


@functools.partial(jax.jit, static_argnames=("network", "solver"))
def begin(request: Request, *, network: Network, solver: Solver) -> State:
  """The state that `sample` begins with: noise, or a picture noised in part."""
  x, t = request.start, request.times[0]
  if x is None:
    x = _noise(request, _keys(request), network.model.patch_dim)
  if request.image is not None:
    share = per_token(t[..., None], request.tokens.segments)
    x = interpolate(x, request.image, share, network.objective.of)
  return solver.start(x, t)


@functools.partial(jax.jit, static_argnames=("network", "solver"))
def advance(
  params: Params,
  request: Request,
  state: State,
  *,
  network: Network,
  solver: Solver,
) -> State:
  """Goes on from a state along the times of a request."""
  tokens, keys = request.tokens, _keys(request)
  samples = rows(tokens.segments, _real(tokens), request.seeds.shape[1])
  samples = samples._replace(
    normal=lambda t: _noise(request, at_time(keys, t), network.model.patch_dim)
  )
  with nn.logical_axis_rules(RULES):
    x = nn.with_logical_constraint(state.x, PATCHES)
    velocity = _velocity(params, request, network, samples)
    return solver.integrate(
      velocity, state._replace(x=x), request.times, samples
    )


def _velocity(
  params: Params, request: Request, network: Network, samples: Samples
) -> ode.Velocity:
  """v(x, t) of patches `f32[B, L, P]` at times `f32[B, N]`, guided."""
  cfg, tokens = network.model, request.tokens
  size = cfg.head_dim, cfg.position_axes, cfg.rope_theta

  def at(t, condition):
    condition = condition._replace(time=t)
    if request.positions is None:
      return condition
    return condition._replace(rope_rates=request.positions.rates(t, *size))

  def plain(x, t, condition):
    inputs = tokens._replace(patches=x), at(t, condition)
    return network.velocity(params, *inputs)

  conditional = network.encode(params, request.condition)
  if request.negative is None:
    return functools.partial(plain, condition=conditional)
  unconditional = network.encode(params, request.negative)

  def both(x, t):
    # One batch for both branches, conditional rows first.
    inputs = tokens._replace(patches=x)
    batch = _stack((inputs, at(t, conditional)), (inputs, at(t, unconditional)))
    return tuple(jnp.split(network.velocity(params, *batch), 2))

  alone = functools.partial(plain, condition=conditional)
  return classifier_free(both, alone, request.guidance, samples)


def _stack(first: Any, second: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _real(tokens: Tokens) -> jax.Array:
  return (tokens.kinds == PATCH) & (tokens.segments != 0)


def _keys(request: Request) -> jax.Array:
  """`key[B, N]` of the samples, each of its seed and id."""

  def key(seed, sample_id):
    return jax.random.fold_in(jax.random.key(seed), sample_id)

  of_row = jax.vmap(jax.vmap(key))
  return of_row(request.seeds, request.condition.sample_ids)


def _noise(request: Request, keys: jax.Array, patch_dim: int) -> jax.Array:
  """`f32[B, L, P]` of those keys, zero on separators and padding."""
  tokens = request.tokens
  values = token_noise(keys, tokens.segments, patch_dim)
  return jnp.where(_real(tokens)[..., None], values, 0)
