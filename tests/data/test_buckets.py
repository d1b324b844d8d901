"""Buckets: the published counts, bounds of each, and the choice among them."""

import itertools

import numpy as np
import pytest

from data_pipelines.buckets import Buckets

UNIT = 16


@pytest.mark.parametrize(
  "side, count, fewest",
  [(256, 49, 224), (512, 97, 952), (1024, 193, 3955)],
)
def test_the_buckets_that_lumina_t2x_trains_with(side, count, fewest):
  sizes = Buckets([side], UNIT).sizes(side)
  assert len(sizes) == len(set(sizes)) == count
  assert sizes[0] == (side // 2, 2 * side)
  assert sizes[count // 2] == (side, side)
  assert sizes[-1] == (2 * side, side // 2)
  tokens = [h * w // UNIT**2 for h, w in sizes]
  assert (min(tokens), max(tokens)) == (fewest, (side // UNIT) ** 2)


@pytest.mark.parametrize("ratio", [1, 1.5, 100])
def test_no_bucket_is_too_large_or_too_long(ratio):
  for side, unit in itertools.product((64, 160, 256), (8, 16, 32)):
    sizes = Buckets([side], unit, ratio).sizes(side)
    assert (side, side) in sizes
    for h, w in sizes:
      assert h % unit == w % unit == 0
      assert 0 < h * w <= side**2
      assert max(h, w) <= ratio * min(h, w)
    # Portrait buckets mirror landscape buckets.
    assert {(w, h) for h, w in sizes} == set(sizes)


def shown(bucket, height, width):
  """Share of an image that a crop to a bucket shows."""
  h, w = bucket
  scale = max(h / height, w / width)
  return h * w / (height * scale * width * scale)


def test_candidates_crop_the_least_of_an_image():
  buckets = Buckets([256, 512], UNIT)
  rng = np.random.default_rng(0)
  for height, width in rng.integers(20, 3000, (60, 2)).tolist():
    best = buckets.candidates(height, width, 5)
    (side,) = {
      side for side in buckets.resolutions if best[0] in buckets.sizes(side)
    }
    shares = [shown(bucket, height, width) for bucket in best]
    assert shares == sorted(shares, reverse=True)
    others = set(buckets.sizes(side)) - set(best)
    assert len(set(best)) == 5
    assert min(shares) >= max(shown(b, height, width) for b in others) - 1e-12


def test_the_resolution_is_the_largest_that_enlarges_nothing():
  buckets = Buckets([512, 256, 1024], UNIT)
  assert buckets.resolutions == (256, 512, 1024)
  for size, side in [
    ((16, 16), 256),
    ((511, 512), 256),
    ((512, 512), 512),
    ((256, 1024), 512),
    ((5000, 5000), 1024),
  ]:
    assert set(buckets.candidates(*size)) <= set(buckets.sizes(side))


def test_an_image_of_a_buckets_shape_has_that_bucket_first():
  buckets = Buckets([256], UNIT)
  for h, w in buckets.sizes(256):
    # Reduced shapes of several buckets may be the same.
    first_h, first_w = buckets.candidates(3 * h, 3 * w)[0]
    assert first_h * w == first_w * h


def test_a_resolution_of_few_buckets_gives_them_all():
  assert Buckets([16], UNIT).candidates(100, 100) == ((16, 16),)
  few = Buckets([32], UNIT)
  assert set(few.candidates(100, 100, 100)) == set(few.sizes(32))


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (([250], 16), "resolution 250 of .250,. is not .* use 256"),
    (([8], 16), "use 16"),
    (([], 16), "at least one"),
    (([256, 256], 16), "none twice"),
    (([256], 0), "unit = 0"),
    (([256], 16, 0.5), "max_aspect_ratio = 0.5"),
    (([256], 16, float("nan")), "max_aspect_ratio = nan"),
  ],
)
def test_arguments_that_make_no_buckets(args, message):
  with pytest.raises(ValueError, match=message):
    Buckets(*args)


def test_images_that_fit_no_bucket():
  buckets = Buckets([256], UNIT)
  with pytest.raises(ValueError, match="3 x 0 has no pixels"):
    buckets.candidates(0, 3)
  with pytest.raises(ValueError, match="count = 0"):
    buckets.candidates(3, 3, 0)
