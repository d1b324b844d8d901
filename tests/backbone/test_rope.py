"""Rotary positions on one axis and several."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.backbone import rope
from lumina_jax.backbone.rope import RULES, RopeScaling, frequencies

rotate = jax.jit(lambda x, angles: rope.rotate(x, rope.rotation(angles)))
THETA = 10_000.0


@functools.partial(jax.jit, static_argnums=(1, 2))
def angles(ids, head_dim, theta):
  return rope.angles(ids, frequencies(head_dim, ids.shape[-1], theta))


every_rank = pytest.mark.parametrize("axes", [1, 2, 3])
every_rule = pytest.mark.parametrize("rule", RULES)


def vectors(length=6, head_dim=24):
  return jax.random.normal(jax.random.key(0), (2, 2, length, 3, head_dim))


def positions(axes, length=6, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, 40, size=(2, length, axes)))


def test_two_axes_alternate_as_in_next_dit():
  found = angles(jnp.array([[[3, 5]]]), 72, THETA)[0, 0]
  expected = [3.0, 5.0, 1.798453, 2.997421, 1.078144, 1.796907]
  assert found.shape == (36,)
  np.testing.assert_allclose(found[:6], expected, atol=2e-6)


@pytest.mark.parametrize("head_dim", [4, 64, 72])
def test_one_axis_has_the_frequencies_of_roformer(head_dim):
  expected = [THETA ** (-2 * k / head_dim) for k in range(head_dim // 2)]
  found = frequencies(head_dim, 1, THETA)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@every_rank
def test_pairs_take_turns_among_axes(axes):
  ids = np.zeros((axes, 1, axes), int)
  ids[np.arange(axes), 0, np.arange(axes)] = 1
  turned = np.asarray(angles(jnp.asarray(ids), 24, THETA))[:, 0] != 0
  expected = np.arange(12) % axes == np.arange(axes)[:, None]
  np.testing.assert_array_equal(turned, expected)


@jax.jit
def scores(ids):
  q, k = (rotate(x, angles(ids, 24, THETA)) for x in vectors())
  return jnp.einsum("blhk,bshk->bhls", q, k)


@every_rank
def test_scores_depend_on_relative_positions_only(axes):
  ids = positions(axes)
  offset = jnp.arange(1, axes + 1) * 17
  np.testing.assert_allclose(scores(ids), scores(ids + offset), atol=1e-3)


@every_rank
def test_scores_depend_on_every_axis(axes):
  ids = positions(axes)
  for axis in range(axes):
    moved = ids.at[:, 0, axis].add(1)
    assert jnp.abs(scores(ids) - scores(moved)).max() > 0.1


@every_rank
def test_rotation_keeps_the_norm_of_every_pair(axes):
  x = vectors()[0]
  turned = rotate(x, angles(positions(axes), 24, THETA))

  def norms(x):
    return jnp.linalg.norm(x.reshape(*x.shape[:-1], -1, 2), axis=-1)

  np.testing.assert_allclose(norms(turned), norms(x), rtol=1e-5)
  assert jnp.abs(turned - x).max() > 0.1


def test_rotation_is_multiplication_by_a_unit_complex_number():
  x, ids = vectors()[0], positions(2)
  angle = np.asarray(angles(ids, 24, THETA))[:, :, None]
  pairs = np.asarray(x).reshape(*x.shape[:-1], -1, 2)
  expected = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
  found = np.asarray(rotate(x, angles(ids, 24, THETA))).reshape(pairs.shape)
  np.testing.assert_allclose(found[..., 0], expected.real, atol=1e-5)
  np.testing.assert_allclose(found[..., 1], expected.imag, atol=1e-5)


def test_the_origin_is_not_turned():
  x = vectors()[0]
  still = angles(jnp.zeros((2, 6, 2), int), 24, THETA)
  np.testing.assert_array_equal(rotate(x, still), x)


def test_rotation_computes_in_float32_and_keeps_the_dtype():
  x = vectors()[0].astype(jnp.bfloat16)
  angle = angles(positions(2), 24, THETA)
  exact = rotate(x.astype(jnp.float32), angle)
  turned = rotate(x, angle)
  assert turned.dtype == jnp.bfloat16
  np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def compiled(rule, time, head_dim, axes, theta):
  return rule.rates(time, head_dim, axes, theta)


def rates(rule, time, axes=2, head_dim=72):
  time = np.asarray(time, np.float32).reshape(1, -1)
  return np.asarray(compiled(rule, time, head_dim, axes, THETA))[0]


def scaling(rule, scale=2.0, **numbers):
  return RopeScaling(rule, **dict(scale=scale, trained=64.0) | numbers)


TIMES = [0.0, 0.1, 0.29, 0.3, 0.5, 0.9, 1.0]


def by_bases(rule, time, scale, trained, head_dim, axes):
  """Rates as the papers write them: new bases, max of rates; float64."""
  size = head_dim // axes
  e = np.arange(0, size, 2) / size
  plain = THETA**-e
  noise = (1 - time) ** 2

  def ntk(scale):
    return (THETA * scale ** (size / (size - 2))) ** -e

  def by_parts(alpha, beta):
    turns = trained / (2 * np.pi / plain)
    ramp = np.interp(turns, [alpha, beta], [0.0, 1.0]) if beta else 1.0
    return (1 - ramp) * plain / scale + ramp * plain

  def joined(power):
    return np.maximum((THETA * scale**power) ** -e, plain / scale)

  found = {
    "none": lambda: plain,
    "linear": lambda: plain / scale,
    "ntk": lambda: ntk(scale),
    "ntk_plain": lambda: (THETA * scale) ** -e,
    "yarn": lambda: by_parts(1, 32),
    "frequency_aware": lambda: joined(
      head_dim / (head_dim * math.log(trained / (2 * np.pi), THETA))
    ),
    "time_aware": lambda: joined(head_dim / ((head_dim - 1) * time + 1)),
    "watershed": lambda: plain / scale if time < 0.3 else (THETA * scale) ** -e,
    "dype_linear": lambda: plain / scale ** (2 * noise),
    "dype_ntk": lambda: ntk(scale ** (2 * noise)),
    "dype_yarn": lambda: by_parts(noise, 32 * noise),
  }
  return np.repeat(found[rule](), axes)  # Pairs take turns among axes.


@every_rule
@every_rank
def test_rules_are_those_of_the_papers(axes, rule):
  for scale in (1.3, 2.0, 5.0):
    found = rates(scaling(rule, scale), TIMES, axes)
    expected = [by_bases(rule, t, scale, 64, 72, axes) for t in TIMES]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_watershed_interpolates_early_and_slows_the_slow_pairs_late():
  """Golden rates of the original."""
  early, late = rates(scaling("watershed"), [0.1, 0.5])
  np.testing.assert_allclose(
    early[::2][:3], [0.5, 0.299742, 0.179691], atol=1e-6
  )
  np.testing.assert_allclose(late[::2][:3], [1, 0.576838, 0.332742], atol=1e-6)


@every_rule
@every_rank
def test_a_scale_of_one_changes_no_rule(axes, rule):
  plain = np.broadcast_to(frequencies(72, axes, THETA), (len(TIMES), 36))
  found = rates(scaling(rule, 1.0), TIMES, axes)
  np.testing.assert_array_equal(found, plain)


@every_rule
@every_rank
@pytest.mark.parametrize("trained", [4.0, 64.0, 4096.0])
def test_rates_lie_between_trained_and_interpolated(axes, rule, trained):
  scale = 3.0
  plain = frequencies(72, axes, THETA)
  found = rates(scaling(rule, scale, trained=trained), TIMES, axes)
  most = scale**2 if rule in ("dype_linear", "dype_ntk") else scale
  assert np.isfinite(found).all() and (found > 0).all()
  assert (found <= plain * (1 + 1e-6)).all()
  assert (found >= plain / most * (1 - 1e-5)).all()
  for axis in range(axes):
    assert (np.diff(found[:, axis::axes], axis=1) < 0).all()


@every_rank
@pytest.mark.parametrize(
  "rule", ["ntk", "ntk_plain", "frequency_aware", "time_aware", "dype_ntk"]
)
def test_the_fastest_pair_of_an_axis_stays(axes, rule):
  np.testing.assert_array_equal(
    rates(scaling(rule, 4.0), TIMES, axes)[:, :axes], 1
  )


@every_rank
def test_ntk_interpolates_the_slowest_pair(axes):
  plain = frequencies(72, axes, THETA)
  found = rates(scaling("ntk", 3.0), TIMES, axes)[0]
  np.testing.assert_allclose(found[-axes:], plain[-axes:] / 3, rtol=1e-6)


def test_a_single_pair_an_axis_stays():
  for rule in ("ntk", "dype_ntk"):
    np.testing.assert_array_equal(rates(scaling(rule), 0.5, 2, 4), [[1, 1]])


def test_yarn_goes_by_the_turns_along_the_trained_length():
  plain = frequencies(72, 1, THETA)
  turns = 1000 * plain / (2 * np.pi)
  kept = rates(scaling("yarn", 3.0, trained=1000), 0.5, 1)[0] / plain
  many, few = turns > 32, turns < 1
  assert many.any() and few.any() and not (many | few).all()
  np.testing.assert_allclose(kept[many], 1, rtol=1e-6)
  np.testing.assert_allclose(kept[few], 1 / 3, rtol=1e-6)
  between = kept[~many & ~few]
  assert ((between > 1 / 3) & (between < 1)).all()


def test_frequency_aware_divides_the_pair_that_turns_once_by_the_scale():
  plain = frequencies(72, 2, THETA)
  once = 13
  rule = scaling("frequency_aware", 3.0, trained=2 * np.pi / plain[once])
  kept = rates(rule, 0.5)[0] / plain
  np.testing.assert_allclose(kept[once:], 1 / 3, rtol=1e-5)
  assert (kept[: once - 1] > 1 / 3 + 1e-3).all()  # Its axis's faster ones.


def test_time_aware_goes_from_interpolation_to_plain_ntk():
  start, end = rates(scaling("time_aware"), [0, 1])
  linear, ntk = (rates(scaling(x), 0.5)[0] for x in ("linear", "ntk_plain"))
  np.testing.assert_allclose(start[2:], linear[2:], rtol=1e-6)
  np.testing.assert_allclose(end, np.maximum(linear, ntk), rtol=1e-5)


@pytest.mark.parametrize("rule", ["dype_linear", "dype_ntk", "dype_yarn"])
def test_dype_ends_as_trained(rule):
  kept = rates(scaling(rule, 4.0), [0, 0.5, 0.9, 1]) / frequencies(72, 2, THETA)
  np.testing.assert_allclose(kept[-1], 1, rtol=1e-6)
  assert (np.diff(kept, axis=0) >= -1e-6).all()
  # A hair past the end, where float32 may step, still is.
  np.testing.assert_array_equal(
    rates(scaling(rule, 4.0), 1 + 1e-6)[0], frequencies(72, 2, THETA)
  )


@pytest.mark.parametrize(
  ("rule", "static"), [("dype_linear", "linear"), ("dype_ntk", "ntk")]
)
def test_dype_is_a_static_rule_of_a_scale_that_falls(rule, static):
  found = rates(scaling(rule, 3.0, lambda_s=1.5, lambda_t=3.0), 0.25)
  falling = scaling(static, 3.0 ** (1.5 * 0.75**3))
  np.testing.assert_allclose(found, rates(falling, 0.25), rtol=1e-5)


def test_dype_yarn_begins_as_yarn():
  np.testing.assert_array_equal(
    rates(scaling("dype_yarn"), 0), rates(scaling("yarn"), 0)
  )


@every_rule
def test_a_base_factor_is_of_the_base_under_any_rule(rule):
  time = np.full((1, 1), 0.4, np.float32)
  tripled = compiled(scaling(rule), time, 72, 2, 3 * THETA)
  factor = compiled(scaling(rule, base_factor=3.0), time, 72, 2, THETA)
  np.testing.assert_allclose(factor, tripled, rtol=2e-5)


def test_linear_and_a_base_factor_together():
  """As the original's two arguments, `rope_scaling_factor` and `ntk_factor`."""
  np.testing.assert_allclose(
    rates(RopeScaling("linear", scale=2.0, base_factor=3.0), 0.5)[0],
    frequencies(72, 2, 3 * THETA) / 2,
    rtol=1e-5,
  )


@every_rule
def test_each_sample_may_have_numbers_of_its_own(rule):
  numbers = dict(
    scale=jnp.array([[1.0, 2.0, 4.0]]),
    trained=jnp.array([[64.0, 32.0, 100.0]]),
    watershed=jnp.array([[0.3, 0.6, 0.3]]),
    lambda_s=jnp.array([[2.0, 1.0, 3.0]]),
  )
  times = [0.1, 0.5, 0.9]
  together = rates(RopeScaling(rule, **numbers), times)
  for i, time in enumerate(times):
    own = {name: float(number[0, i]) for name, number in numbers.items()}
    alone = rates(RopeScaling(rule, **own), time)[0]
    np.testing.assert_allclose(together[i], alone, rtol=1e-6)


@every_rule
def test_other_numbers_and_times_do_not_compile_anew(rule):
  traces = []

  @jax.jit
  def jitted(how, time):
    traces.append(how)
    return how.rates(time, 24, 2, THETA)

  first = scaling(rule)
  changes = [{}, dict(scale=3.0), dict(watershed=0.7), dict(base_factor=1.5)]
  changes += [dict(lambda_s=1.0, lambda_t=0.5), dict(trained=16.0, beta=8.0)]
  for number, change in enumerate(changes):
    time = np.full((1, 2), number / 10, np.float32)
    jitted(dataclasses.replace(first, **change), time)
  assert len(traces) == 1


def test_rules_can_be_concatenated_as_the_rows_they_belong_to():
  def of(*scales):
    scales = np.float32([scales])
    return jax.tree.map(lambda x: x + 0 * scales, scaling("yarn", scales))

  both = jax.tree.map(lambda a, b: np.concatenate([a, b]), of(1, 2), of(3, 4))
  assert both.rule == "yarn" and both.scale.shape == (2, 2)
  time = np.full((2, 2), 0.5, np.float32)
  found = compiled(both, time, 72, 2, THETA)
  for row, how in zip(found, (of(1, 2), of(3, 4)), strict=True):
    alone = compiled(how, time[:1], 72, 2, THETA)[0]
    np.testing.assert_allclose(row, alone, rtol=1e-6)


def test_an_unknown_rule_is_named_with_a_near_one():
  with pytest.raises(ValueError, match="'dype_yarm'; did you mean 'dype_yarn'"):
    RopeScaling("dype_yarm")
  with pytest.raises(ValueError, match=f"use one of: {', '.join(RULES)}"):
    RopeScaling("2")


@pytest.mark.parametrize("rule", ["yarn", "frequency_aware", "dype_yarn"])
def test_rules_of_the_trained_length_ask_for_it(rule):
  with pytest.raises(ValueError, match=f"'{rule}' needs trained"):
    rates(RopeScaling(rule, scale=2.0), 0.5)
