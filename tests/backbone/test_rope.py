"""Rotary positions on one axis and several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.backbone import rope
from lumina_jax.backbone.rope import Rescale, Watershed, frequencies

rotate = jax.jit(lambda x, angles: rope.rotate(x, rope.rotation(angles)))
THETA = 10_000.0


@functools.partial(jax.jit, static_argnums=(1, 2))
def angles(ids, head_dim, theta):
  return rope.angles(ids, frequencies(head_dim, ids.shape[-1], theta))


every_rank = pytest.mark.parametrize("axes", [1, 2, 3])


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


def rates(rule, time, axes=2, head_dim=72):
  time = jnp.asarray(time, jnp.float32).reshape(1, -1)
  return np.asarray(rule.rates(time, head_dim, axes, THETA))[0]


def test_watershed_interpolates_early_and_slows_the_slow_pairs_late():
  early, late = rates(Watershed(2.0, at=0.3), [0.1, 0.5])
  np.testing.assert_allclose(
    early[::2][:3], [0.5, 0.299742, 0.179691], atol=1e-6
  )
  np.testing.assert_allclose(late[::2][:3], [1, 0.576838, 0.332742], atol=1e-6)


@every_rank
def test_a_scale_of_one_changes_no_rule(axes):
  plain = frequencies(24, axes, THETA)
  for rule in (Rescale(), Watershed(1.0, 0.5)):
    for time in (0.2, 0.8):
      found = rates(rule, time, axes, 24)[0]
      np.testing.assert_array_equal(found, plain)


def test_linear_divides_positions_and_ntk_multiplies_the_base():
  plain = frequencies(72, 2, THETA)
  np.testing.assert_allclose(
    rates(Rescale(linear=3.0), 0.5)[0], plain / 3, rtol=1e-6
  )
  np.testing.assert_allclose(
    rates(Rescale(ntk=3.0), 0.5)[0], frequencies(72, 2, 3 * THETA), rtol=1e-5
  )
  np.testing.assert_allclose(
    rates(Rescale(2.0, 3.0), 0.5)[0],
    frequencies(72, 2, 3 * THETA) / 2,
    rtol=1e-5,
  )


def test_each_sample_may_have_a_scale_of_its_own():
  scales = jnp.array([[1.0, 2.0, 4.0]])
  found = rates(Rescale(linear=scales), [0.1, 0.5, 0.9])
  for scale, ours in zip(scales[0], found, strict=True):
    np.testing.assert_array_equal(ours, rates(Rescale(scale), 0.5)[0])
