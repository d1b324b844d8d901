"""Tiles and batches: where tiles lie, how they blend, what remains visible."""

import itertools

import jax
import numpy as np
import pytest
from support.autoencoder import random_params

from lumina_jax.encoders import autoencoder as codec_module
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.tiles import (
  blend_weights,
  run_in_parts,
  run_tiles,
  tile_starts,
)
from lumina_jax.encoders.vae import VaeConfig
from lumina_jax.parallel import processes

CELL = 8
CFG = VaeConfig(widths=(16, 32, 32, 32), norm_groups=8, layers=1)


@pytest.mark.parametrize("tile", [8, 9, 16, 64])
def test_tiles_are_whole_and_overlap(tile):
  for more in (0, 1, 2, 5, 13, 100):
    size = tile + more
    starts = tile_starts(size, tile)
    assert starts[0] == 0 and starts[-1] + tile == size
    shared = [a + tile - b for a, b in itertools.pairwise(starts)]
    assert all(tile // 4 <= s < tile for s in shared)
    weights = blend_weights(starts, tile, 3)
    assert (weights > 0).all()
    total = np.zeros(3 * size)
    for start, weight in zip(starts, weights, strict=True):
      total[3 * start :][: 3 * tile] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_blending_of_two_is_linear():
  first, second = blend_weights([0, 6], 8, 2)
  ramp = (np.arange(4) + 0.5) / 4
  np.testing.assert_allclose(second, [*ramp, *[1] * 12], atol=1e-6)
  np.testing.assert_allclose(first, second[::-1], atol=1e-6)


def double(x):
  return x.repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize(("rows", "columns"), [(21, 40), (8, 9), (5, 23)])
def test_pointwise_functions_are_the_same_in_tiles(rows, columns):
  x = np.random.default_rng(0).standard_normal((2, rows, columns, 3))
  x, shapes = x.astype(np.float32), set()

  def run(tile):
    shapes.add(tile.shape)
    return double(tile)

  np.testing.assert_allclose(run_tiles(run, x, 8, 1, 2), double(x), atol=1e-6)
  assert shapes == {(2, min(rows, 8), 8, 3)}  # One shape, so one program.


def test_halving_in_tiles():
  x = np.random.default_rng(0).standard_normal((1, 40, 64, 2))
  half = lambda x: x[:, ::2, ::2]  # noqa: E731
  np.testing.assert_allclose(run_tiles(half, x, 8, 2, 1), half(x), atol=1e-6)


def test_differences_of_tiles_spread_over_their_overlap():
  """Neighbours that differ by d leave no jump larger than d / overlap."""
  rng, x = np.random.default_rng(0), np.zeros((1, 16, 200, 1), np.float32)
  out = run_tiles(lambda x: double(x) + rng.uniform(), x, 16, 1, 2)[0, 0, :, 0]
  starts = tile_starts(200, 16)
  shared = min(a + 16 - b for a, b in itertools.pairwise(starts))
  assert np.ptp(out) > 0.5
  assert np.abs(np.diff(out)).max() < 1 / (2 * shared) + 1e-6


def test_small_images_stay_whole():
  shapes = []
  for shape in ((3, 64, 40, 1), (64, 72, 1)):
    run_in_parts(
      lambda x: shapes.append(x.shape) or x, np.zeros(shape), 8, 8, 8, None
    )
  assert shapes == [(3, 64, 40, 1), (1, 64, 64, 1), (1, 64, 64, 1)]


def test_tiles_of_batches_of_frames():
  shapes = set()

  def run(x):
    shapes.add(x.shape)
    return double(x)

  x = np.random.default_rng(0).standard_normal((5, 10, 24, 1))
  out = run_in_parts(run, x.astype(np.float32), 1, 2, 8, 2)
  np.testing.assert_allclose(out, double(x), atol=1e-6)
  assert shapes == {(2, 8, 8, 1)}


class Remote:
  """An array on devices of other processes, which numpy cannot read."""

  def __init__(self, value):
    self.value, self.shape = value, value.shape

  def __array__(self, *args, **options):
    raise RuntimeError("spans non-addressable devices")


def test_parts_may_lie_on_devices_of_several_processes(monkeypatch):
  monkeypatch.setattr(
    processes, "gather", lambda x: x.value if isinstance(x, Remote) else x
  )
  x = np.random.default_rng(0).standard_normal((3, 10, 24, 1), np.float32)
  out = run_in_parts(lambda x: Remote(double(x)), x, 1, 2, 8, 2)
  np.testing.assert_allclose(out, double(x), atol=1e-6)


def smooth(rows, columns, channels, seed):
  """A sum of twelve waves of at most four periods a side."""
  rng = np.random.default_rng(seed)
  place = np.mgrid[:rows, :columns] / max(rows, columns)
  rate = rng.uniform(-4, 4, (12, channels, 2))
  phase = rng.uniform(0, 2 * np.pi, (12, channels))
  angle = 2 * np.pi * np.einsum("nca,ahw->hwnc", rate, place) + phase
  return (np.sin(angle).sum(axis=2) / 5).astype(np.float32)


def tame(params):
  """Smooth kernels, and residual layers that add little.

  The norms of a wholly random network amplify differences between tiles until
  they show different images, which no blending repairs.
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
  """By how much jumps between pixels exceed those of the whole image.

  In fractions of the range of the whole image.
  """
  jumps, expected = (np.abs(np.diff(x, axis=axis)) for x in (tiles, whole))
  return (jumps - expected) / np.ptp(whole)


def seam(tiles, whole, starts, tile) -> float:
  """The largest excess across any border of a tile."""
  borders = {b * CELL - 1 for a in starts for b in (a, a + tile)}
  inner = sorted(borders - {-1, (starts[-1] + tile) * CELL - 1})
  return max(
    excess(tiles, whole, axis).take(inner, axis=axis).max() for axis in (-3, -2)
  )


def hard_weights(starts, tile, scale) -> np.ndarray:
  """No blending: each place belongs to the tile with the nearest middle."""
  return np.round(blend_weights(starts, tile, scale))


@pytest.mark.e2e
def test_seams_of_a_smooth_image_are_less_than_a_byte_shows(monkeypatch):
  autoencoder = Autoencoder(CFG, tame(random_params(CFG)))
  latents = smooth(56, 56, 4, 0) * CFG.scaling_factor
  whole = np.asarray(autoencoder.decode(latents))
  autoencoder.tile, outputs = 256, []
  decode = codec_module._decode

  def recorded(*args, **options):
    outputs.append(decode(*args, **options))
    return outputs[-1]

  monkeypatch.setattr(codec_module, "_decode", recorded)
  tiles = autoencoder.decode(latents)
  assert tiles.shape == whole.shape == (448, 448, 3)
  assert np.abs(tiles - whole).max() > 0.01 * np.ptp(whole)  # They do differ.
  largest = seam(tiles, whole, tile_starts(56, 32), 32)
  assert 0 < largest < 1 / 255, largest * 255
  # Other places show no more either, unlike without blending.
  monkeypatch.setattr("lumina_jax.encoders.tiles.blend_weights", hard_weights)
  again = iter(outputs)
  monkeypatch.setattr(codec_module, "_decode", lambda *_, **__: next(again))
  edged = autoencoder.decode(latents)
  for axis in (-3, -2):
    most = excess(edged, whole, axis).max()
    assert excess(tiles, whole, axis).max() < most / 3


@pytest.mark.e2e
def test_tiled_encoding_is_near_and_samples_alike():
  autoencoder = Autoencoder(CFG, tame(random_params(CFG)))
  images, key = smooth(128, 192, 3, 0), jax.random.key(0)
  whole = autoencoder.encode(images)
  expected = autoencoder.encode(images, key) - whole
  autoencoder.tile = 128
  tiles = autoencoder.encode(images)
  assert tiles.shape == whole.shape == (16, 24, 4)
  assert 0 < np.abs(tiles - whole).mean() < 0.1 * np.ptp(whole)
  noise = autoencoder.encode(images, key) - tiles
  assert np.corrcoef(np.ravel(noise), np.ravel(expected))[0, 1] > 0.95
