"""How likely data are under a flow: the change of variables along its path.

The flow dx/dt = v carries noise x0 to data x1, and log densities along with it:

  log p(x1) = log N(x0; 0, I) - int_0^1 div v(x_t, t) dt

(FFJORD, Grathwohl et al. 2019, equation 3). So data are solved back to t = 0,
together with that integral. With probes e whose mean of e e^T is the identity,
div v = tr J is the mean of e^T J e: `rademacher` gives an estimate without bias
(Hutchinson; FFJORD, section 3.1), `basis` the exact trace.

No guidance: a guided field is no model of any density that one would want to
know, and that of one prompt is the density given the prompt.

*T are the times of samples as in `flow.samples`: (B,) for a batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lumina_jax.flow import ode
from lumina_jax.flow.multistep import DpmSolver
from lumina_jax.flow.samples import Samples, batch
from lumina_jax.flow.sde import Stochastic


class Density(NamedTuple):
  """What a flow says of data.

  Attributes:
    log_density: log p(x1) in nats, `f32[*T]`.
    noise: the x0 that the flow carries to the data, like x.
    dimensions: elements of each sample that count, `f32[*T]`.
    evaluations: `i32[]` of the velocity; each also costs a backward pass a
      probe.
    behind: `bool[*T]`, samples that an adaptive solver gave up: no density.
  """

  log_density: jax.Array
  noise: jax.Array
  dimensions: jax.Array
  evaluations: jax.Array
  behind: jax.Array


def rademacher(keys: jax.Array, x: jax.Array, probes: int = 1) -> jax.Array:
  """Signs +-1 at random, like x: `[probes, *x.shape]`.

  The error of an estimate falls as probes^(-1/2).

  Args:
    keys: `key[B]`, one a sample `x[B, ...]`; with one `key[]`, all of x is one
      sample.
    x: a state.
    probes: how many, at least 1.

  Raises:
    ValueError: for fewer.
  """
  if probes < 1:
    raise ValueError(f"probes = {probes}: at least 1")
  shape = (probes, *x.shape[keys.ndim :])
  signs = jax.vmap(lambda key: jax.random.rademacher(key, shape, x.dtype))
  signs = jnp.moveaxis(signs(keys.reshape(-1)), 0, 1)
  return signs.reshape(probes, *x.shape)


def basis(x: jax.Array) -> jax.Array:
  """Probes of the exact trace, `[D, *x.shape]` for D elements a sample.

  They cost D backward passes and D times the memory of x: for small D.

  Args:
    x: states `[B, ...]`.
  """
  D = math.prod(x.shape[1:])
  # sqrt(D) e_i, as the mean of D outer products is to be the identity.
  units = math.sqrt(D) * jnp.eye(D, dtype=x.dtype)
  units = units.reshape(D, 1, *x.shape[1:])
  return jnp.broadcast_to(units, (D, *x.shape))


def counted(mask: jax.Array) -> Samples:
  """A padded batch: samples along the first axis, means over what counts.

  Args:
    mask: `bool[B, ...]`, of the state's shape.
  """
  samples = batch(mask)
  count = jnp.sum(mask, axis=range(1, mask.ndim))

  def mean(x: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.where(mask, x, 0), axis=range(1, mask.ndim))
    return total / jnp.maximum(count, 1)

  return samples._replace(mean=mean)


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
    velocity: v(x, t, memory); of each sample a function of that sample alone.
    x: the state.
    t: `f32[*T]`.
    probes: `[probes, *x.shape]`.
    samples: the layout of x; their mean is over d elements, and the result is
      div v / d.
    memory: constants of the velocity.

  Raises:
    ValueError: if the velocity changes its memory.
  """

  def at(x):
    slope, after = velocity(x, t, memory)
    _check_unchanged(memory, after)
    return slope

  # By vjp: a function with a custom vjp has no forward derivative.
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
  """log p(x) of data, solved back to noise.

  The solver carries (x, integral of div v / d). An adaptive one allows both
  their errors, the larger of the root mean square over x and of that of the
  integral, in nats per dimension: so no sum over thousands of dimensions, with
  its rounding, is held against the tolerance of one, and none hides it.

  Args:
    velocity: v(x, t, memory), unguided; t is `f32[*T]`.
    x: data, the state at the last time; `f32[B, ...]` without samples.
    times: `f32[steps + 1]` or `f32[steps + 1, *T]` from noise 0 to data 1, as
      in sampling; they are gone through from the last to the first.
    solver: of the ODE, one that runs backwards.
    probes: `[probes, *x.shape]` of `rademacher` or `basis`; the same all along
      the solve, so that its integrand is smooth (FFJORD, section 3.1).
    samples: how they lie in x; None: along the first axis. Elements that weigh
      nothing in their mean, such as padding, stay as they are and count
      nothing; `counted` makes such samples.
    memory: constants of the velocity. A velocity that changes its memory, as
      caches do, has no density: its field depends on the steps taken.

  Raises:
    ValueError: for a solver that is stochastic or runs forwards only, or a
      velocity that changes its memory.
  """
  if isinstance(solver, Stochastic | DpmSolver):
    raise ValueError(
      f"{type(solver).__name__} does not solve data back to noise; take a"
      " solver of the plain ODE, such as midpoint, rk4 or dopri5"
    )
  samples = batch(x) if samples is None else samples
  dimensions, counts = _counts(x, samples)
  probes = jnp.where(counts, probes, 0)

  @ode.stateless
  def field(state: Any, t: jax.Array) -> Any:
    slope, div = divergence(velocity, state[0], t, probes, samples, memory)
    return jnp.where(counts, slope, 0), div

  both = Samples(
    spread=lambda values: (samples.spread(values), values),
    mean=lambda pair: jnp.maximum(samples.mean(pair[0]), pair[1]),
  )
  start = x, jnp.zeros(dimensions.shape, _wide(x).dtype)
  back = ode.Segment(field, _per_sample(times, dimensions.shape)[::-1])
  state = ode.run([back], start, solver, both)
  noise, gain = state.x  # dl/dt = div v / d from 1 to 0: minus the integral.
  prior = -(samples.mean(_wide(noise) ** 2) + math.log(2 * math.pi)) / 2
  return Density(
    (prior + gain) * dimensions,
    noise,
    dimensions,
    state.evaluations,
    state.behind,
  )


def nats_per_dimension(density: Density) -> jax.Array:
  """-log p(x) / d of the state that the flow models, `f32[*T]`.

  Of an autoencoder's latents this is what there is: they imply no density of
  pixels, as decoding has no inverse.
  """
  return -density.log_density / density.dimensions


def bits_per_dimension(density: Density, scale: float = 1.0) -> jax.Array:
  """-log2 p / d, `f32[*T]`, of pixels where x = scale (pixels - shift).

  log p(pixels) = log p(x) + d log scale. For pixels of 0..255 at [-1, 1] the
  scale is 2 / 255; with uniform noise of [0, 1) added to them, it bounds the
  bits of the whole numbers from above (Theis et al. 2016, section 3.1). Bits of
  pixels are not to be had from an autoencoder's latents, whatever their scale:
  `nats_per_dimension`.

  Raises:
    ValueError: if the scale is not positive.
  """
  if not scale > 0:
    raise ValueError(f"scale = {scale}: must be positive")
  return (nats_per_dimension(density) - math.log(scale)) / math.log(2)


def _check_unchanged(before: Any, after: Any) -> None:
  """Refuses a velocity that returns another memory than it was given."""
  same = jax.tree.structure(before) == jax.tree.structure(after) and all(
    a is b
    for a, b in zip(
      jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    )
  )
  if not same:
    raise ValueError(
      "this velocity changes its memory from evaluation to evaluation, so it "
      "is no function of (x, t) and has no density: turn its caches off"
    )


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _counts(x: jax.Array, samples: Samples) -> tuple[jax.Array, jax.Array]:
  """Elements of each sample, `f32[*T]`, and which these are, `bool` like x."""
  # A mean over d elements weighs each of them by 1 / d, and others by 0.
  means, pull = jax.vjp(samples.mean, jnp.zeros_like(_wide(x)))
  (weights,) = pull(jnp.ones_like(means))
  share = samples.mean(weights)
  some = share > 0
  return jnp.where(some, jnp.round(1 / share), 0), weights > 0


def _per_sample(times: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """`f32[steps + 1, *T]` of times that samples may share."""
  if times.ndim == 1:
    times = jnp.expand_dims(times, tuple(range(1, 1 + len(shape))))
  return jnp.broadcast_to(times, (len(times), *shape))
