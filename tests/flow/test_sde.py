"""Stochastic solvers: diffusions, last steps, noise by key and time."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lumina_jax.flow import noise, ode, schedule
from lumina_jax.flow.path import LINEAR, PATHS
from lumina_jax.flow.samples import SINGLE, batch
from lumina_jax.flow.sde import FORMS, MAX_SHARE, EulerMaruyama, Heun

GOLDEN = Path(__file__).parents[1] / "golden/transport/tensors.safetensors"
SOLVERS = (EulerMaruyama, Heun)

every_solver = pytest.mark.parametrize("Solver", SOLVERS)
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def uniform(steps):
  """As `schedule.uniform`, but on the host, where nothing compiles."""
  return np.linspace(0.0, 1.0, steps + 1)


@every_path
def test_diffusions_equal_the_original(path):
  golden = load_file(GOLDEN)

  @jax.jit
  def diffusions(t):
    return {
      form: EulerMaruyama(form, norm=1.3, path=path).diffusion(t)
      for form in FORMS
    }

  for form, found in diffusions(golden["t"]).items():
    original = "SBDM" if form == "sbdm" else form.replace("_", "-")
    expected = golden[f"{path.name}_diffusion_{original}"].ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_original_defaults_are_not_limited():
  solver = EulerMaruyama()
  times = np.append(np.linspace(0, 0.96, 250), 1.0)
  taken = solver.diffusion(times[:-1]) * np.diff(times)
  assert (taken[:-1] < MAX_SHARE * LINEAR.sigma(times[1:-1]) ** 2).all()
  assert taken[-1] <= LINEAR.sigma(times[-2]) ** 2 * (1 + 1e-6)


def swing(x, t):
  return jnp.cos(3 * jnp.reshape(t, t.shape + (1,) * (x.ndim - t.ndim))) * x


def single(x, key):
  return SINGLE._replace(normal=noise.normal(key, x))


@functools.partial(jax.jit, static_argnums=0)
def solve(solver, x, times, key=None):
  key = jax.random.key(5) if key is None else key
  return ode.solve(ode.stateless(swing), x, times, solver, single(x, key))


@every_solver
def test_the_last_step_is_of_its_kind(Solver):
  x, t = np.array([0.3, -2.0], np.float32), np.float32(0.9)
  v, sigma = np.cos(3 * t) * x, 1 - t
  score = -(x - t * v) / sigma
  expected = {
    "mean": x + sigma * (v + sigma * score),
    "tweedie": (x + sigma**2 * score) / t,
    "euler": x + sigma * v,
  }

  @jax.jit
  def ends(x):
    times = np.array([t, 1.0], np.float32)
    return [solve(Solver(last=last), x, times) for last in expected]

  for (last, end), found in zip(expected.items(), ends(x), strict=True):
    np.testing.assert_allclose(found, end, rtol=1e-5, err_msg=last)


@pytest.mark.parametrize("form", ["sigma", "sbdm"])
@pytest.mark.parametrize(
  ("Solver", "plain"), [(EulerMaruyama, ode.EULER), (Heun, ode.HEUN)]
)
def test_without_diffusion_it_is_the_ode(Solver, plain, form):
  x = np.array([1.0, -2.0], np.float32)
  times = schedule.shift(uniform(9), 3.0)
  found = solve(Solver(form, norm=0.0, last="none"), x, times)
  np.testing.assert_allclose(found, solve(plain, x, times), rtol=1e-6)


def test_a_norm_of_0_is_no_diffusion():
  t = np.linspace(0, 1, 5, dtype=np.float32)
  for form in FORMS:
    zero = not np.any(EulerMaruyama(form, norm=0.0).diffusion(t))
    assert zero == (form != "decreasing")


@every_solver
def test_samples_of_a_batch_do_not_affect_each_other(Solver):
  keys = jax.random.split(jax.random.key(5), 3)
  x = np.random.default_rng(5).standard_normal((3, 4, 2), np.float32)
  grid = uniform(8)
  times = np.stack(
    [schedule.shift(grid, 4.0), grid, np.linspace(0.5, 1.0, 9)], axis=1
  ).astype(np.float32)

  @jax.jit
  def together(x, keys):
    samples = batch(x)._replace(normal=noise.normal(keys, x))
    return ode.solve(ode.stateless(swing), x, times, Solver(), samples)

  ends = together(x, keys)
  for i in range(3):
    alone = solve(Solver(), x[i], times[:, i], keys[i])
    np.testing.assert_allclose(ends[i], alone, rtol=1e-5, atol=1e-6)


def test_noise_belongs_to_key_and_time():
  keys, t = jax.random.split(jax.random.key(5), 2), np.float32(0.25)
  x = np.ones((2, 500), np.float32)
  normal = jax.jit(lambda t: noise.normal(keys, x)(t))
  first = normal(np.array([t, t]))
  np.testing.assert_array_equal(first, noise.normal(keys, x)(t))
  np.testing.assert_array_equal(first[1], noise.normal(keys[1], x[1])(t))
  later = normal(np.full(2, np.nextafter(t, np.float32(1))))
  values = np.concatenate([first, later])
  assert np.abs(np.corrcoef(values) - np.eye(4)).max() < 0.2
  np.testing.assert_allclose(values.std(), 1, atol=0.1)


@every_solver
def test_the_state_keeps_its_dtype(Solver):
  x = jnp.ones(3, jnp.bfloat16)
  end = solve(Solver(), x, uniform(4))
  assert end.dtype == x.dtype


@every_solver
def test_a_last_time_beside_one_counts_as_one(Solver):
  # As times are that float32 shifted past the last bit of 1.
  x = np.array([0.5, 2.0], np.float32)
  times = uniform(5).astype(np.float32)
  expected = solve(Solver(), x, times)
  for end in np.float32([1 - 2.4e-7, 1 + 1.2e-7]):
    assert end != 1
    found = solve(Solver(), x, np.append(times[:-1], end))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@every_solver
def test_other_times_do_not_recompile(Solver):
  traces = []

  @jax.jit
  def end(x, times):
    traces.append(None)
    samples = single(x, jax.random.key(5))
    return ode.solve(ode.stateless(swing), x, times, Solver(), samples)

  times = uniform(6)
  ends = [end(jnp.ones(3), schedule.shift(times, f)) for f in (1.0, 2.0, 4.0)]
  assert len(traces) == 1
  assert len(np.unique([found[0] for found in ends])) == 3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"form": "increasing-decreasing"}, "mean 'increasing_decreasing'"),
    ({"form": "SBDM"}, "use one of: constant, sbdm"),
    ({"last": "tweedy"}, "mean 'tweedie'"),
    ({"norm": -1.0}, "norm = -1.0: must not be negative"),
  ],
)
def test_invalid_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Heun(**options)


def test_samples_without_noise_are_refused():
  field = ode.stateless(swing)
  with pytest.raises(ValueError, match=r"normal is None: .* noise\.normal"):
    ode.solve(field, jnp.ones(3), uniform(2), Heun())
