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

THETA = 10_000.0
RANKS = (1, 2, 3)
TIMES = [0.0, 0.1, 0.29, 0.3, 0.5, 0.9, 1.0]
every_rank = pytest.mark.parametrize("axes", RANKS)
every_rule = pytest.mark.parametrize("rule", RULES)
rotate = jax.jit(lambda x, angles: rope.rotate(x, rope.rotation(angles)))


def angles(ids, head_dim, theta=THETA):
  """Of positions `[B, L, A]`, in numpy."""
  rates = frequencies(head_dim, ids.shape[-1], theta)
  return np.asarray(rope.angles(jnp.asarray(ids), rates))


@functools.cache
def vectors(length=6, head_dim=24):
  rng = np.random.default_rng(0)
  shape = 2, 2, length, 3, head_dim
  return rng.standard_normal(shape, np.float32)


def positions(axes, length=6):
  return np.random.default_rng(0).integers(0, 40, size=(2, length, axes))


def scores(ids):
  q, k = (np.asarray(rotate(x, angles(ids, 24))) for x in vectors())
  return np.einsum("blhk,bshk->bhls", q, k)


def test_two_axes_alternate_as_in_next_dit():
  found = angles(np.array([[[3, 5]]]), 72)[0, 0]
  expected = [3.0, 5.0, 1.798453, 2.997421, 1.078144, 1.796907]
  assert found.shape == (36,)
  np.testing.assert_allclose(found[:6], expected, atol=2e-6)


@pytest.mark.parametrize("head_dim", [4, 64, 72])
def test_one_axis_has_the_frequencies_of_roformer(head_dim):
  expected = [THETA ** (-2 * k / head_dim) for k in range(head_dim // 2)]
  found = frequencies(head_dim, 1, THETA)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@every_rank
def test_pairs_alternate_among_axes(axes):
  ids = np.zeros((axes, 1, axes), int)
  ids[np.arange(axes), 0, np.arange(axes)] = 1
  rotated = angles(ids, 24)[:, 0] != 0
  expected = np.arange(12) % axes == np.arange(axes)[:, None]
  np.testing.assert_array_equal(rotated, expected)


@every_rank
def test_scores_depend_on_relative_positions_along_every_axis(axes):
  ids = positions(axes)
  offset = np.arange(1, axes + 1) * 17
  plain = scores(ids)
  np.testing.assert_allclose(plain, scores(ids + offset), atol=1e-3)
  for axis in range(axes):
    moved = ids.copy()
    moved[:, 0, axis] += 1
    assert np.abs(plain - scores(moved)).max() > 0.1


def test_rotation_is_multiplication_by_a_unit_complex_number():
  x, ids = vectors()[0], positions(2)
  angle = angles(ids, 24)[:, :, None]
  pairs = x.reshape(*x.shape[:-1], -1, 2)
  expected = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
  found = np.asarray(rotate(x, angles(ids, 24))).reshape(pairs.shape)
  np.testing.assert_allclose(found[..., 0], expected.real, atol=1e-5)
  np.testing.assert_allclose(found[..., 1], expected.imag, atol=1e-5)


def test_the_origin_is_not_rotated():
  x = vectors()[0]
  origin = angles(np.zeros((2, 6, 2), int), 24)
  np.testing.assert_array_equal(rotate(x, origin), x)


def test_rotation_computes_in_float32_and_keeps_the_dtype():
  x = vectors()[0].astype(jnp.bfloat16)
  angle = angles(positions(2), 24)
  exact = rotate(x.astype(np.float32), angle)
  rotated = rotate(x, angle)
  assert rotated.dtype == jnp.bfloat16
  np.testing.assert_array_equal(rotated, exact.astype(jnp.bfloat16))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def compiled(scaling, time, head_dim, axes, theta):
  """Rates of one `RopeScaling`, or of each in a dict."""
  of_one = lambda one: one.rates(time, head_dim, axes, theta)  # noqa: E731
  is_one = lambda x: isinstance(x, RopeScaling)  # noqa: E731
  return jax.tree.map(of_one, scaling, is_leaf=is_one)


def rates(scaling, time, axes=2, head_dim=72, theta=THETA):
  """Rates `[N, K/2]` of one row of samples at these times."""
  time = np.asarray(time, np.float32).reshape(1, -1)
  found = compiled(scaling, time, head_dim, axes, theta)
  return jax.tree.map(lambda x: np.asarray(x)[0], found)


def scaling(rule, scale=2.0, **numbers):
  return RopeScaling(rule, **dict(scale=scale, trained=64.0) | numbers)


@functools.cache
def of_all_rules(axes, scale, trained=64.0):
  """Rates `[N, K/2]` of every rule at `TIMES`, compiled together."""
  rules = {rule: scaling(rule, scale, trained=trained) for rule in RULES}
  return rates(rules, TIMES, axes)


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
  return np.repeat(found[rule](), axes)  # Pairs alternate among axes.


@every_rank
@every_rule
def test_rules_are_those_of_the_papers(axes, rule):
  for scale in (1.3, 2.0, 5.0):
    found = of_all_rules(axes, scale)[rule]
    expected = [by_bases(rule, t, scale, 64, 72, axes) for t in TIMES]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_watershed_interpolates_early_and_lowers_the_slow_rates_late():
  """Golden rates of the original."""
  early, late = rates(scaling("watershed"), [0.1, 0.5])
  np.testing.assert_allclose(
    early[::2][:3], [0.5, 0.299742, 0.179691], atol=1e-6
  )
  np.testing.assert_allclose(late[::2][:3], [1, 0.576838, 0.332742], atol=1e-6)


@every_rule
def test_a_scale_of_one_changes_no_rule(rule):
  for axes in RANKS:
    plain = np.broadcast_to(frequencies(72, axes, THETA), (len(TIMES), 36))
    np.testing.assert_array_equal(of_all_rules(axes, 1.0)[rule], plain)


@every_rule
def test_rates_lie_between_trained_and_interpolated(rule):
  scale = 3.0
  most = scale**2 if rule in ("dype_linear", "dype_ntk") else scale
  for axes in RANKS:
    plain = frequencies(72, axes, THETA)
    for trained in (4.0, 64.0, 4096.0):
      found = of_all_rules(axes, scale, trained)[rule]
      assert np.isfinite(found).all() and (found > 0).all()
      assert (found <= plain * (1 + 1e-6)).all()
      assert (found >= plain / most * (1 - 1e-5)).all()
      for axis in range(axes):
        assert (np.diff(found[:, axis::axes], axis=1) < 0).all()


@every_rank
def test_the_ends_of_an_axis(axes):
  """Rules of theta keep the fastest pair; "ntk" interpolates the slowest."""
  of_theta = "ntk", "ntk_plain", "frequency_aware", "time_aware", "dype_ntk"
  for rule in of_theta:
    np.testing.assert_array_equal(of_all_rules(axes, 5.0)[rule][:, :axes], 1)
  slowest = frequencies(72, axes, THETA)[-axes:]
  found = of_all_rules(axes, 3.0)["ntk"][0, -axes:]
  np.testing.assert_allclose(found, slowest / 3, rtol=1e-6)


def test_a_single_pair_of_an_axis_keeps_its_rate():
  for rule in ("ntk", "dype_ntk"):
    np.testing.assert_array_equal(rates(scaling(rule), 0.5, 2, 4), [[1, 1]])


def test_yarn_depends_on_the_turns_along_the_trained_length():
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
  found = of_all_rules(2, 2.0)
  start, end = found["time_aware"][[0, -1]]
  linear, ntk = found["linear"][0], found["ntk_plain"][0]
  np.testing.assert_allclose(start[2:], linear[2:], rtol=1e-6)
  np.testing.assert_allclose(end, np.maximum(linear, ntk), rtol=1e-5)


@pytest.mark.parametrize("rule", ["dype_linear", "dype_ntk", "dype_yarn"])
def test_dype_ends_as_trained(rule):
  plain = frequencies(72, 2, THETA)
  kept = of_all_rules(2, 5.0)[rule] / plain
  np.testing.assert_allclose(kept[-1], 1, rtol=1e-6)
  assert (np.diff(kept, axis=0) >= -1e-6).all()
  # float32 may step slightly past the end.
  np.testing.assert_array_equal(rates(scaling(rule, 4.0), 1 + 1e-6)[0], plain)


@pytest.mark.parametrize(
  ("rule", "static"), [("dype_linear", "linear"), ("dype_ntk", "ntk")]
)
def test_dype_is_a_static_rule_whose_scale_decays(rule, static):
  found = rates(scaling(rule, 3.0, lambda_s=1.5, lambda_t=3.0), 0.25)
  decayed = scaling(static, 3.0 ** (1.5 * 0.75**3))
  np.testing.assert_allclose(found, rates(decayed, 0.25), rtol=1e-5)


def test_dype_yarn_begins_as_yarn():
  found = of_all_rules(2, 2.0)
  np.testing.assert_array_equal(found["dype_yarn"][0], found["yarn"][0])


def test_a_base_factor_multiplies_theta_under_any_rule():
  rules = {rule: scaling(rule) for rule in RULES}
  tripled = rates(rules, 0.4, theta=3 * THETA)
  factor = rates({rule: scaling(rule, base_factor=3.0) for rule in RULES}, 0.4)
  for rule in RULES:
    np.testing.assert_allclose(
      factor[rule], tripled[rule], rtol=2e-5, err_msg=rule
    )


def test_linear_and_a_base_factor_together():
  """As the original's two arguments, `rope_scaling_factor` and `ntk_factor`."""
  np.testing.assert_allclose(
    rates(RopeScaling("linear", scale=2.0, base_factor=3.0), 0.5)[0],
    frequencies(72, 2, 3 * THETA) / 2,
    rtol=1e-5,
  )


def test_each_sample_may_have_its_own_numbers():
  numbers = dict(
    scale=jnp.array([[1.0, 2.0, 4.0]]),
    trained=jnp.array([[64.0, 32.0, 100.0]]),
    watershed=jnp.array([[0.3, 0.6, 0.3]]),
    lambda_s=jnp.array([[2.0, 1.0, 3.0]]),
  )
  times = [0.1, 0.5, 0.9]
  together = rates(
    {rule: RopeScaling(rule, **numbers) for rule in RULES}, times
  )
  for i, time in enumerate(times):
    own = {name: float(number[0, i]) for name, number in numbers.items()}
    alone = rates({rule: RopeScaling(rule, **own) for rule in RULES}, time)
    for rule in RULES:
      np.testing.assert_allclose(
        together[rule][i], alone[rule][0], rtol=1e-6, err_msg=rule
      )


def test_new_numbers_and_times_do_not_recompile():
  traces = []

  @jax.jit
  def jitted(rules, time):
    traces.append(rules)
    return [rule.rates(time, 24, 2, THETA) for rule in rules]

  changes = [{}, dict(scale=3.0), dict(watershed=0.7), dict(base_factor=1.5)]
  changes += [dict(lambda_s=1.0, lambda_t=0.5), dict(trained=16.0, beta=8.0)]
  for number, change in enumerate(changes):
    time = np.full((1, 2), number / 10, np.float32)
    rules = [dataclasses.replace(scaling(rule), **change) for rule in RULES]
    jitted(rules, time)
  assert len(traces) == 1


def test_rules_can_be_concatenated_like_their_rows():
  def of(*scales):
    scales = np.float32([scales])
    return jax.tree.map(lambda x: x + 0 * scales, scaling("yarn", scales))

  both = jax.tree.map(lambda a, b: np.concatenate([a, b]), of(1, 2), of(3, 4))
  assert both.rule == "yarn" and both.scale.shape == (2, 2)
  time = np.full((2, 2), 0.5, np.float32)
  found = compiled(both, time, 72, 2, THETA)
  for row, one in zip(found, (of(1, 2), of(3, 4)), strict=True):
    alone = compiled(one, time[:1], 72, 2, THETA)[0]
    np.testing.assert_allclose(row, alone, rtol=1e-6)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: RopeScaling("dype_yarm"), "'dype_yarm'; did you mean 'dype_yarn'"),
    (lambda: RopeScaling("2"), f"use one of: {', '.join(RULES)}"),
    *(
      (lambda rule=rule: rates(RopeScaling(rule), 0.5), f"'{rule}' needs train")
      for rule in ("yarn", "frequency_aware", "dype_yarn")
    ),
  ],
)
def test_unknown_and_incomplete_rules_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
