"""Log densities of data under a flow, by the change of variables along it.

The flow dx/dt = v carries noise x0 to data x1 and changes log densities by

  log p(x1) = log N(x0; 0, I) - int_0^1 div v(x_t, t) dt

(FFJORD, Grathwohl et al. 2019, equation 3). `log_density` solves data back to
t = 0, together with this integral. For probes e with E[e e^T] = I, the
divergence div v = tr J is the mean of e^T J e: `rademacher` gives an unbiased
estimate (Hutchinson; FFJORD, section 3.1), `basis` the exact trace.

Velocities should be unguided, since a guided velocity models no meaningful
density. The velocity for a prompt gives the density given that prompt.

Times are `f32[*T]`, one per sample as in `flow.samples`: (B,) for a batch.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.flow import ode
from lumina_jax.flow.multistep import DpmSolver
from lumina_jax.flow.samples import Samples, batch
from lumina_jax.flow.sde import Stochastic


class Density(NamedTuple):
  """Densities of data under a flow.

  Attributes:
    log_density: log p(x1) in nats, `f32[*T]`.
    noise: the x0 that the flow carries to the data, like x.
    dimensions: number of elements of each sample, without padding, `f32[*T]`.
    evaluations: evaluations of the velocity, `i32[]`; each also takes one
      backward pass per probe.
    behind: `bool[*T]`, True for samples that an adaptive solver gave up; their
      density is invalid.
  """

  log_density: jax.Array
  noise: jax.Array
  dimensions: jax.Array
  evaluations: jax.Array
  behind: jax.Array


def rademacher(keys: jax.Array, x: jax.Array, probes: int = 1) -> jax.Array:
  """Random signs +-1, `[probes, *x.shape]`.

  The error of the estimate falls as probes^(-1/2).

  Args:
    keys: `key[B]`, one per sample of x `[B, ...]`; `key[]` if all of x is one
      sample.
    x: a state.
    probes: number of probes.

  Raises:
    ValueError: for fewer than one probe.
  """
  if probes < 1:
    raise ValueError(f"probes = {probes}: must be at least 1")
  shape = (probes, *x.shape[keys.ndim :])
  signs = jax.vmap(lambda key: jax.random.rademacher(key, shape, x.dtype))
  signs = jnp.moveaxis(signs(keys.reshape(-1)), 0, 1)
  return signs.reshape(probes, *x.shape)


def basis(x: jax.Array) -> jax.Array:
  """Probes of the exact trace, `[D, *x.shape]` for D elements per sample.

  They take D backward passes and D times the memory of x, so use them for small
  D only.

  Args:
    x: states `[B, ...]`.
  """
  D = math.prod(x.shape[1:])
  # sqrt(D) e_i, since the mean of D outer products must be the identity.
  units = math.sqrt(D) * jnp.eye(D, dtype=x.dtype)
  units = units.reshape(D, 1, *x.shape[1:])
  return jnp.broadcast_to(units, (D, *x.shape))


def divergence(
  velocity: ode.Velocity,
  x: jax.Array,
  t: jax.Array,
  probes: jax.Array,
  samples: Samples,
  memory: Any = (),
) -> tuple[jax.Array, jax.Array]:
  """The slope v(x, t), like x, and its divergence per element, `f32[*T]`.

  Args:
    velocity: v(x, t, memory), in which samples do not depend on each other.
    x: the state.
    t: `f32[*T]`.
    probes: `[probes, *x.shape]`.
    samples: layout of x; its mean over the d elements of a sample makes the
      result div v / d.
    memory: constants of the velocity.

  Raises:
    ValueError: if the velocity changes its memory.
  """

  def at(x):
    slope, after = velocity(x, t, memory)
    _check_unchanged(memory, after)
    return slope

  # Uses vjp, since attention kernels with a custom vjp have no jvp.
  slope, pull = jax.vjp(at, x)

  def along(probe: jax.Array) -> jax.Array:
    (pulled,) = pull(probe.astype(slope.dtype))
    return samples.mean(_wide(probe) * pulled)

  return slope, jnp.mean(jax.lax.map(along, probes), axis=0)


def log_density(
  velocity: ode.Velocity,
  x: jax.Array,
  times: jax.Array,
  solver: ode.Solver,
  probes: jax.Array,
  samples: Samples | None = None,
  memory: Any = (),
) -> Density:
  """log p(x) of data, by solving them back to noise.

  The solver integrates (x, integral of div v / d). The error of an adaptive
  solver is the larger of the root mean square over x and the error of the
  integral in nats per dimension. So the tolerance applies to one dimension
  rather than to a sum over thousands, and neither error hides the other.

  Args:
    velocity: v(x, t, memory), unguided; t is `f32[*T]`.
    x: data, the state at the last time; `f32[B, ...]` if samples is None.
    times: `f32[steps + 1]` or `f32[steps + 1, *T]`, from noise at 0 to data at
      1 as in sampling. The solver runs through them backwards.
    solver: an ODE solver that can run backwards.
    probes: `[probes, *x.shape]` from `rademacher` or `basis`. All times share
      them, so that the integrand is smooth (FFJORD, section 3.1).
    samples: layout of x; None = along the first axis. Elements without weight
      in its mean, such as padding, stay unchanged and do not count;
      `samples.masked_batch` makes such a layout.
    memory: constants of the velocity. Each evaluation must return the same
      arrays: a velocity that changes its memory, as caches do, depends on the
      steps taken and has no density.

  Raises:
    ValueError: for a solver that is stochastic or only runs forwards, or a
      velocity that changes its memory.
  """
  if isinstance(solver, Stochastic | DpmSolver):
    raise ValueError(
      f"{type(solver).__name__} cannot solve data back to noise; use an ODE"
      " solver such as midpoint, rk4 or dopri5"
    )
  samples = batch(x) if samples is None else samples
  dimensions, real = _elements(x, samples)
  probes = jnp.where(real, probes, 0)

  @ode.stateless
  def field(state: Any, t: jax.Array) -> Any:
    slope, div = divergence(velocity, state[0], t, probes, samples, memory)
    return jnp.where(real, slope, 0), div

  both = Samples(
    spread=lambda values: (samples.spread(values), values),
    mean=lambda pair: jnp.maximum(samples.mean(pair[0]), pair[1]),
  )
  start = x, jnp.zeros(dimensions.shape, _wide(x).dtype)
  back = ode.Segment(field, _per_sample(times, dimensions.shape)[::-1])
  state = ode.run([back], start, solver, both)
  noise, change = state.x  # From 1 to 0, hence minus the integral.
  prior = -(samples.mean(_wide(noise) ** 2) + math.log(2 * math.pi)) / 2
  return Density(
    (prior + change) * dimensions,
    noise,
    dimensions,
    state.evaluations,
    state.behind,
  )


def nats_per_dimension(density: Density) -> jax.Array:
  """-log p(x) / d of the state that the flow models, `f32[*T]`.

  Latents of an autoencoder have this density only; they imply none of pixels,
  since decoding has no inverse.
  """
  return -density.log_density / density.dimensions


def bits_per_dimension(density: Density, scale: float = 1.0) -> jax.Array:
  """-log2 p / d of pixels, `f32[*T]`, where x = scale (pixels - shift).

  log p(pixels) = log p(x) + d log scale. For pixels 0..255 mapped to [-1, 1],
  the scale is 2 / 255. With uniform noise of [0, 1) added to the pixels, the
  result is an upper bound of the bits of the integers (Theis et al. 2016,
  section 3.1). For latents of an autoencoder, use `nats_per_dimension`.

  Raises:
    ValueError: if the scale is not positive.
  """
  if not scale > 0:
    raise ValueError(f"scale = {scale}: must be positive")
  return (nats_per_dimension(density) - math.log(scale)) / math.log(2)


def _check_unchanged(before: Any, after: Any) -> None:
  """Raises a ValueError unless both memories consist of the same arrays."""
  same = jax.tree.structure(before) == jax.tree.structure(after) and all(
    a is b
    for a, b in zip(
      jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    )
  )
  if not same:
    raise ValueError(
      "this velocity changes its memory between evaluations, so it is not a "
      "function of (x, t) and has no density: disable its caches"
    )


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _elements(x: jax.Array, samples: Samples) -> tuple[jax.Array, jax.Array]:
  """Number of elements per sample, `f32[*T]`, and their mask, `bool` like x."""
  # A mean over d elements has weight 1 / d for each of them and 0 for others.
  means, pull = jax.vjp(samples.mean, jnp.zeros_like(_wide(x)))
  (weights,) = pull(jnp.ones_like(means))
  share = samples.mean(weights)
  return jnp.where(share > 0, jnp.round(1 / share), 0), weights > 0


def _per_sample(times: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Times as `f32[steps + 1, *T]`; `f32[steps + 1]` serves all samples."""
  if times.ndim == 1:
    times = jnp.expand_dims(times, tuple(range(1, 1 + len(shape))))
  return jnp.broadcast_to(times, (len(times), *shape))
