"""The contract: layouts and their inverses, values per token, lightness."""

import dataclasses
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.tokens import (
  NEXTFRAME,
  NEXTLINE,
  PATCH,
  Grid,
  per_token,
)

ROOT = Path(__file__).parents[1]
SIZES = (
  ((6,), (2,)),
  ((4, 6), (2, 3)),
  ((2, 4, 6), (1, 2, 2)),
  ((2, 3, 4, 2), (2, 1, 2, 1)),
)
CHANNELS = 3


def latents(shape, batch=()):
  """Distinct values, so that any change of order shows."""
  full = (*batch, *shape, CHANNELS)
  return np.arange(1, 1 + math.prod(full), dtype=np.float32).reshape(full)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("separators", [False, True])
@pytest.mark.parametrize(("shape", "patch"), SIZES)
def test_detokenize_inverts_tokenize(shape, patch, separators, xp, batch):
  grid = Grid(shape, patch, raster=True, separators=separators)
  x = xp.asarray(latents(shape, batch))
  patches = grid.tokenize(x)
  back = grid.detokenize(patches)
  width = math.prod(patch) * CHANNELS
  assert patches.shape == (*batch, grid.num_tokens, width)
  assert type(patches) is type(back) is type(x)
  np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("separators", [False, True])
@pytest.mark.parametrize(("shape", "patch"), SIZES)
def test_tokenize_inverts_detokenize(shape, patch, separators):
  grid = Grid(shape, patch, raster=True, separators=separators)
  width = math.prod(patch) * CHANNELS
  patches = np.random.default_rng(0).normal(size=(grid.num_tokens, width))
  patches[grid.kinds != PATCH] = 0
  np.testing.assert_array_equal(
    grid.tokenize(grid.detokenize(patches)), patches
  )


@pytest.mark.parametrize("separators", [False, True])
@pytest.mark.parametrize(("shape", "patch"), SIZES)
def test_patches_and_their_values_are_row_major(shape, patch, separators):
  grid = Grid(shape, patch, raster=True, separators=separators)
  x = latents(shape)
  patches = grid.tokenize(x)
  expected = [
    x[
      tuple(slice(i * p, (i + 1) * p) for i, p in zip(cell, patch, strict=True))
    ].ravel()
    for cell in np.ndindex(grid.counts)
  ]
  np.testing.assert_array_equal(patches[grid.kinds == PATCH], expected)
  assert not patches[grid.kinds != PATCH].any()


def test_tokenize_under_jit_equals_numpy():
  grid = Grid((4, 6), (2, 2), raster=False, separators=True)
  x = latents((4, 6), (2,))
  patches = jax.jit(grid.tokenize)(x)
  np.testing.assert_array_equal(patches, grid.tokenize(x))
  np.testing.assert_array_equal(jax.jit(grid.detokenize)(patches), x)


@pytest.mark.parametrize(
  ("counts", "nextlines", "nextframes"),
  [((5,), 0, 0), ((3, 5), 3, 0), ((2, 3, 5), 6, 2), ((2, 2, 3, 5), 12, 4)],
)
def test_separators_end_each_line_and_each_frame(counts, nextlines, nextframes):
  shape = tuple(2 * n for n in counts)
  grid = Grid(shape, (2,) * len(counts), raster=True, separators=True)
  found = [(grid.kinds == k).sum() for k in (PATCH, NEXTLINE, NEXTFRAME)]
  assert found == [math.prod(counts), nextlines, nextframes]
  assert grid.num_tokens == sum(found)


def test_an_image_is_lines_of_patches_and_a_nextline():
  height, width, patch = 6, 10, 2
  grid = Grid((height, width), (patch, patch), raster=True, separators=True)
  rows, columns = height // patch, width // patch
  assert grid.num_tokens == rows * (columns + 1)
  line = [PATCH] * columns + [NEXTLINE]
  assert grid.kinds.tolist() == line * rows


def test_a_frame_is_its_lines_and_a_nextframe():
  grid = Grid((2, 4, 6), (1, 2, 2), raster=True, separators=True)
  line = [PATCH] * 3 + [NEXTLINE]
  assert grid.kinds.tolist() == (line * 2 + [NEXTFRAME]) * 2


@pytest.mark.parametrize("separators", [False, True])
@pytest.mark.parametrize(("shape", "patch"), SIZES)
def test_the_running_index_counts_every_token(shape, patch, separators):
  grid = Grid(shape, patch, raster=True, separators=separators)
  assert grid.ids[:, 0].tolist() == list(range(grid.num_tokens))
  assert grid.ids.shape == (grid.num_tokens, 1)


@pytest.mark.parametrize("separators", [False, True])
@pytest.mark.parametrize(("shape", "patch"), SIZES)
def test_a_patch_has_the_ids_of_its_cell(shape, patch, separators):
  grid = Grid(shape, patch, raster=False, separators=separators)
  of_patches = grid.ids[grid.kinds == PATCH]
  assert of_patches.tolist() == [list(cell) for cell in np.ndindex(grid.counts)]
  assert len(np.unique(grid.ids, axis=0)) == grid.num_tokens


def test_separators_stand_after_the_last_patch():
  grid = Grid((2, 4, 6), (1, 2, 2), raster=False, separators=True)
  lines = grid.ids[grid.kinds == NEXTLINE]
  frames = grid.ids[grid.kinds == NEXTFRAME]
  assert lines.tolist() == [[0, 0, 3], [0, 1, 3], [1, 0, 3], [1, 1, 3]]
  assert frames.tolist() == [[0, 2, 0], [1, 2, 0]]


@pytest.mark.parametrize("separators", [False, True])
def test_the_origin_moves_every_position(separators):
  at_zero = Grid((4, 6), (2, 2), raster=False, separators=separators)
  moved = dataclasses.replace(at_zero, origin=(3, 5))
  np.testing.assert_array_equal(moved.ids, at_zero.ids + np.array([3, 5]))
  x = latents((4, 6))
  np.testing.assert_array_equal(moved.tokenize(x), at_zero.tokenize(x))


@pytest.mark.parametrize("patch", [3, 4])
@pytest.mark.parametrize("size", [-3, 0, 1, 5, 7, 11])
def test_a_bad_size_is_answered_with_the_nearest_good_one(size, patch):
  with pytest.raises(ValueError, match=rf"size {size} of") as caught:
    Grid((12, size), (patch, patch), raster=True, separators=False)
  near = int(re.search(r"(\d+)$", str(caught.value)).group(1))
  good = range(patch, 40, patch)
  assert near in good
  assert abs(near - size) == min(abs(other - size) for other in good)


def test_a_patch_of_another_rank_is_refused():
  with pytest.raises(ValueError, match="as many axes"):
    Grid((4, 4), (2,), raster=True, separators=False)


def test_arrays_of_another_size_are_refused():
  grid = Grid((4, 6), (2, 2), raster=True, separators=True)
  with pytest.raises(ValueError, match=r"expected .*\(4, 6\).*\(4, 4, 3\)"):
    grid.tokenize(latents((4, 4)))
  with pytest.raises(ValueError, match="takes 8 tokens, got 6"):
    grid.detokenize(np.zeros((6, 12)))


@pytest.mark.parametrize("xp", [np, jnp])
def test_one_sample_a_row_broadcasts(xp):
  values = xp.ones((2, 1, 4))
  assert per_token(values, xp.ones((2, 7), int)) is values


@pytest.mark.parametrize("inner", [(), (4,), (2, 3)])
@pytest.mark.parametrize("xp", [np, jnp])
def test_several_samples_a_row_are_gathered_by_segment(xp, inner):
  values = latents((2, 3, *inner))[..., 0]
  segments = np.array([[1, 1, 3, 2, 0], [2, 0, 0, 0, 0]])
  found = per_token(xp.asarray(values), xp.asarray(segments))
  assert found.shape == (2, 5, *inner)
  for b, token in itertools.product(range(2), range(5)):
    if segments[b, token]:
      sample = segments[b, token] - 1
      np.testing.assert_array_equal(found[b, token], values[b, sample])


def test_padding_reads_a_value_of_its_own_row():
  values = jnp.array([[1.0, 2.0], [3.0, 4.0]])
  found = per_token(values, jnp.zeros((2, 3), int))
  assert found.tolist() == [[1, 1, 1], [3, 3, 3]]


def test_the_contract_imports_neither_jax_nor_flax():
  code = (
    "import sys, lumina_jax.packing, lumina_jax.tokens; "
    "print({'jax', 'flax', 'numpy'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "{'numpy'}"
