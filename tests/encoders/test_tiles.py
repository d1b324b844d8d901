"""Tiles and batches: where they lie, how they blend, what is seen of them."""

import itertools

import jax
import numpy as np
import pytest
from encoders.test_vae import random_params

from lumina_jax.encoders import autoencoder
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.tiles import Walk, blending, starts, tiled
from lumina_jax.encoders.vae import VaeConfig

CELL = 8
CFG = VaeConfig(widths=(16, 32, 32, 32), norm_groups=8, layers=1)


@pytest.mark.parametrize("tile", [8, 9, 16, 64])
@pytest.mark.parametrize("more", [0, 1, 2, 5, 13, 100])
def test_tiles_are_whole_and_overlap(tile, more):
  size = tile + more
  at = starts(size, tile)
  assert at[0] == 0 and at[-1] + tile == size
  shared = [a + tile - b for a, b in itertools.pairwise(at)]
  assert all(tile // 4 <= s < tile for s in shared)
  weights = blending(at, tile, 3)
  assert (weights > 0).all()
  total = np.zeros(3 * size)
  for start, weight in zip(at, weights, strict=True):
    total[3 * start :][: 3 * tile] += weight
  np.testing.assert_allclose(total, 1, atol=1e-6)


def test_blending_of_two_is_linear():
  first, second = blending([0, 6], 8, 2)
  ramp = (np.arange(4) + 0.5) / 4
  np.testing.assert_allclose(second, [*ramp, *[1] * 12], atol=1e-6)
  np.testing.assert_allclose(first, second[::-1], atol=1e-6)


def double(x):
  return x.repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize(("rows", "columns"), [(21, 40), (8, 9), (5, 23)])
def test_what_sees_its_pixel_only_is_the_same_in_tiles(rows, columns):
  x = np.random.default_rng(0).standard_normal((2, rows, columns, 3))
  x, shapes = x.astype(np.float32), set()

  def run(tile):
    shapes.add(tile.shape)
    return double(tile)

  np.testing.assert_allclose(tiled(run, x, 8, 1, 2), double(x), atol=1e-6)
  assert shapes == {(2, min(rows, 8), 8, 3)}  # One shape, so one program.


def test_halving_in_tiles():
  x = np.random.default_rng(0).standard_normal((1, 40, 64, 2))
  half = lambda x: x[:, ::2, ::2]  # noqa: E731
  np.testing.assert_allclose(tiled(half, x, 8, 2, 1), half(x), atol=1e-6)


def test_what_tiles_disagree_about_is_spread_over_their_overlap():
  """Neighbours that differ by d leave no jump larger than d / overlap."""
  rng, x = np.random.default_rng(0), np.zeros((1, 16, 200, 1), np.float32)
  out = tiled(lambda x: double(x) + rng.uniform(), x, 16, 1, 2)[0, 0, :, 0]
  at = starts(200, 16)
  shared = min(a + 16 - b for a, b in itertools.pairwise(at))
  assert np.ptp(out) > 0.5
  assert np.abs(np.diff(out)).max() < 1 / (2 * shared) + 1e-6


def test_small_pictures_go_whole():
  seen = []
  walk = Walk(lambda x: seen.append(x.shape) or x, 8, 8, 64, None)
  walk(np.zeros((3, 64, 40, 1)))
  walk(np.zeros((64, 72, 1)))
  assert seen == [(3, 64, 40, 1), (1, 64, 64, 1), (1, 64, 64, 1)]


def test_tiles_of_batches_of_frames():
  shapes = set()

  def run(x):
    shapes.add(x.shape)
    return double(x)

  x = np.random.default_rng(0).standard_normal((5, 10, 24, 1))
  out = Walk(run, 1, 2, 16, 2)(x.astype(np.float32))
  np.testing.assert_allclose(out, double(x), atol=1e-6)
  assert shapes == {(2, 8, 8, 1)}


def smooth(rows, columns, channels, seed):
  """A sum of twelve waves, of at most four periods a side."""
  rng = np.random.default_rng(seed)
  place = np.mgrid[:rows, :columns] / max(rows, columns)
  rate = rng.uniform(-4, 4, (12, channels, 2))
  phase = rng.uniform(0, 2 * np.pi, (12, channels))
  angle = 2 * np.pi * np.einsum("nca,ahw->hwnc", rate, place) + phase
  return (np.sin(angle).sum(axis=2) / 5).astype(np.float32)


def tame(params):
  """Kernels that are smooth, layers that add little to what goes by them.

  The norms of a wholly random network amplify what differs between tiles until
  they show different pictures, which blending cannot mend.
  """
  ramp = np.float32([1, 2, 1])
  window = (ramp[:, None] * ramp)[..., None, None]

  def leaf(path, x):
    *_, module, name = (key.key for key in path)
    if name == "kernel" and x.shape[0] == 3:
      x = 9 * x.mean(axis=(0, 1)) * window / window.sum()
    return 0.1 * x if module in ("second", "out") else x

  return jax.tree_util.tree_map_with_path(leaf, params)


def excess(tiles, whole, axis) -> np.ndarray:
  """By how much a jump between pixels exceeds that of the whole.

  In parts of the range from black to white, which the whole spans.
  """
  found, expected = (np.abs(np.diff(x, axis=axis)) for x in (tiles, whole))
  return (found - expected) / np.ptp(whole)


def seam(tiles, whole, at, tile) -> float:
  """The most of it across any border of a tile."""
  borders = {b * CELL - 1 for a in at for b in (a, a + tile)}
  inner = sorted(borders - {-1, (at[-1] + tile) * CELL - 1})
  return max(
    excess(tiles, whole, axis).take(inner, axis=axis).max() for axis in (-3, -2)
  )


def cut(at, tile, scale) -> np.ndarray:
  """Instead of blending: each place is of the tile whose middle is nearest."""
  return np.round(blending(at, tile, scale))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_seams_of_a_smooth_picture_are_less_than_a_byte_shows(
  seed, monkeypatch
):
  autoencoder = Autoencoder(CFG, tame(random_params(CFG, seed)))
  latents = smooth(56, 56, 4, seed) * CFG.scaling_factor
  whole = np.asarray(autoencoder.decode(latents))
  tiles = autoencoder.decode(latents, tile=256)
  assert tiles.shape == whole.shape == (448, 448, 3)
  assert np.abs(tiles - whole).max() > 0.01 * np.ptp(whole)  # They do differ.
  found = seam(tiles, whole, starts(56, 32), 32)
  assert 0 < found < 1 / 255, found * 255
  # Nor does it show elsewhere, as it would if tiles met without blending.
  monkeypatch.setattr("lumina_jax.encoders.tiles.blending", cut)
  edged = autoencoder.decode(latents, tile=256)
  for axis in (-3, -2):
    most = excess(edged, whole, axis).max()
    assert excess(tiles, whole, axis).max() < most / 3


@pytest.mark.slow
def test_tiled_encoding_is_near_and_samples_alike():
  autoencoder = Autoencoder(CFG, tame(random_params(CFG)))
  images, key = smooth(128, 192, 3, 0), jax.random.key(0)
  whole = autoencoder.encode(images)
  tiles = autoencoder.encode(images, tile=128)
  assert tiles.shape == whole.shape == (16, 24, 4)
  assert 0 < np.abs(tiles - whole).mean() < 0.1 * np.ptp(whole)
  drawn = autoencoder.encode(images, key, tile=128) - tiles
  expected = autoencoder.encode(images, key) - whole
  assert np.corrcoef(np.ravel(drawn), np.ravel(expected))[0, 1] > 0.95


def test_one_program_serves_pictures_of_any_size():
  vae = Autoencoder(CFG, random_params(CFG))
  before = autoencoder._picture._cache_size()
  for rows, columns in ((9, 12), (16, 9), (10, 10)):
    vae.decode(np.zeros((rows, columns, 4), np.float32), tile=64)
  assert autoencoder._picture._cache_size() == before + 1
