"""The contract: layouts and their inverses, values per token, imports."""

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
  """Distinct values, so that every change of order fails."""
  full = (*batch, *shape, CHANNELS)
  return np.arange(1, 1 + math.prod(full), dtype=np.float32).reshape(full)


every_size = pytest.mark.parametrize(("shape", "patch"), SIZES)
both_kinds = pytest.mark.parametrize("separators", [False, True])


def check_inverse(grid, x):
  patches = grid.tokenize(x)
  back = grid.detokenize(patches)
  width = math.prod(grid.patch) * CHANNELS
  batch = x.shape[: -len(grid.shape) - 1]
  assert patches.shape == (*batch, grid.num_tokens, width)
  assert type(patches) is type(back) is type(x)
  np.testing.assert_array_equal(back, x)


@both_kinds
@every_size
def test_detokenize_inverts_tokenize(shape, patch, separators):
  grid = Grid(shape, patch, raster=True, separators=separators)
  for batch in ((), (2,), (2, 3)):
    check_inverse(grid, latents(shape, batch))


@pytest.mark.parametrize(("shape", "patch"), [SIZES[0], SIZES[2]])
def test_jax_arrays_stay_jax_arrays(shape, patch):
  grid = Grid(shape, patch, raster=True, separators=True)
  check_inverse(grid, jnp.asarray(latents(shape, (2,))))


@both_kinds
@every_size
def test_tokenize_inverts_detokenize(shape, patch, separators):
  grid = Grid(shape, patch, raster=True, separators=separators)
  width = math.prod(patch) * CHANNELS
  patches = np.random.default_rng(0).normal(size=(grid.num_tokens, width))
  patches[grid.kinds != PATCH] = 0
  np.testing.assert_array_equal(
    grid.tokenize(grid.detokenize(patches)), patches
  )


@both_kinds
@every_size
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
def test_separators_end_each_row_and_each_frame(counts, nextlines, nextframes):
  shape = tuple(2 * n for n in counts)
  grid = Grid(shape, (2,) * len(counts), raster=True, separators=True)
  found = [(grid.kinds == k).sum() for k in (PATCH, NEXTLINE, NEXTFRAME)]
  assert found == [math.prod(counts), nextlines, nextframes]
  assert grid.num_tokens == sum(found)


def test_an_image_is_rows_of_patches_and_a_nextline():
  height, width, patch = 6, 10, 2
  grid = Grid((height, width), (patch, patch), raster=True, separators=True)
  rows, columns = height // patch, width // patch
  assert grid.num_tokens == rows * (columns + 1)
  line = [PATCH] * columns + [NEXTLINE]
  assert grid.kinds.tolist() == line * rows


def test_a_frame_is_its_rows_and_a_nextframe():
  grid = Grid((2, 4, 6), (1, 2, 2), raster=True, separators=True)
  line = [PATCH] * 3 + [NEXTLINE]
  assert grid.kinds.tolist() == (line * 2 + [NEXTFRAME]) * 2


@both_kinds
@every_size
def test_the_running_index_counts_every_token(shape, patch, separators):
  grid = Grid(shape, patch, raster=True, separators=separators)
  assert grid.ids[:, 0].tolist() == list(range(grid.num_tokens))
  assert grid.ids.shape == (grid.num_tokens, 1)


@both_kinds
@every_size
def test_a_patch_has_the_ids_of_its_cell(shape, patch, separators):
  grid = Grid(shape, patch, raster=False, separators=separators)
  of_patches = grid.ids[grid.kinds == PATCH]
  assert of_patches.tolist() == [list(cell) for cell in np.ndindex(grid.counts)]
  assert len(np.unique(grid.ids, axis=0)) == grid.num_tokens


def test_separators_have_ids_after_the_last_patch():
  grid = Grid((2, 4, 6), (1, 2, 2), raster=False, separators=True)
  lines = grid.ids[grid.kinds == NEXTLINE]
  frames = grid.ids[grid.kinds == NEXTFRAME]
  assert lines.tolist() == [[0, 0, 3], [0, 1, 3], [1, 0, 3], [1, 1, 3]]
  assert frames.tolist() == [[0, 2, 0], [1, 2, 0]]


@both_kinds
def test_the_origin_moves_every_position(separators):
  at_zero = Grid((4, 6), (2, 2), raster=False, separators=separators)
  moved = dataclasses.replace(at_zero, origin=(3, 5))
  np.testing.assert_array_equal(moved.ids, at_zero.ids + np.array([3, 5]))
  x = latents((4, 6))
  np.testing.assert_array_equal(moved.tokenize(x), at_zero.tokenize(x))


@pytest.mark.parametrize("patch", [3, 4])
@pytest.mark.parametrize("size", [-3, 0, 1, 5, 7, 11])
def test_an_error_names_the_nearest_valid_size(size, patch):
  with pytest.raises(ValueError, match=rf"size {size} of") as caught:
    Grid((12, size), (patch, patch), raster=True, separators=False)
  near = int(re.search(r"nearest is (\d+)$", str(caught.value)).group(1))
  valid = range(patch, 40, patch)
  assert near in valid
  assert abs(near - size) == min(abs(other - size) for other in valid)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: Grid((4, 4), (2,), True, False),
      r"patch \(2,\) must have as many",
    ),
    (lambda: Grid((4, 4), (2, 0), True, False), r"patch \(2, 0\) must be pos"),
    (
      lambda: Grid((4, 4), (2, 2), True, False, origin=(1, 2)),
      r"origin \(1, 2\) must have one number",
    ),
    (
      lambda: Grid((4, 6), (2, 2), True, True).tokenize(latents((4, 4))),
      r"expected .*\(4, 6\).*\(4, 4, 3\)",
    ),
    (
      lambda: Grid((4, 6), (2, 2), True, True).detokenize(np.zeros((6, 12))),
      "takes 8 tokens, got 6",
    ),
  ],
)
def test_invalid_grids_and_arrays_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize("xp", [np, jnp])
def test_one_sample_a_row_broadcasts(xp):
  values = xp.ones((2, 1, 4))
  assert per_token(values, xp.ones((2, 7), int)) is values


@pytest.mark.parametrize(
  ("xp", "inner"), [(np, ()), (np, (4,)), (np, (2, 3)), (jnp, (4,))]
)
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
  values = np.array([[1.0, 2.0], [3.0, 4.0]])
  found = per_token(values, np.zeros((2, 3), int))
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
