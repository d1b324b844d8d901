"""Crops: of exact size, inside their image, in every mode and format."""

import io

import numpy as np
import pytest
from PIL import Image

from lumina_jax.media import crop, image_file
from lumina_jax.media.image_file import UnreadableImage

ORIENTATION = 0x0112


def load(path, size, seed=0, channels=3, flip=False, **kwargs):
  rng = np.random.default_rng(seed)
  x = crop.load(str(path), size, rng, channels, flip, **kwargs)
  assert x.shape == (*size, channels)
  assert x.dtype == np.float32
  assert -1 <= x.min() <= x.max() <= 1
  return x


def noise(height, width, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(values, path, **options):
  image = values if isinstance(values, Image.Image) else Image.fromarray(values)
  image.save(path, **options)
  return path


def ramps(height, width):
  """Red gives the column and green the row, both from 0 to 255."""
  rows, columns = np.mgrid[:height, :width]
  x = np.zeros((height, width, 3), np.uint8)
  x[..., 0] = np.round(255 * columns / max(width - 1, 1))
  x[..., 1] = np.round(255 * rows / max(height - 1, 1))
  return x


@pytest.mark.parametrize(
  "shape",
  [(1, 1), (3, 2), (33, 47), (48, 32), (1, 300), (300, 1), (97, 640)],
)
def test_crops_have_their_size_whatever_the_image(tmp_path, shape):
  for name in ("x.png", "x.jpg"):
    path = save(noise(*shape), tmp_path / name)
    for seed, size in enumerate([(32, 48), (48, 32), (16, 16)]):
      load(path, size, seed)


def test_an_image_with_one_equal_side_is_not_resized(tmp_path):
  values = noise(32, 70)
  path = save(values, tmp_path / "x.png")
  whole = values.astype(np.float32) / 127.5 - 1
  lefts = set()
  for seed in range(60):
    x = load(path, (32, 48), seed)
    (left,) = [
      left
      for left in range(70 - 48 + 1)
      if np.allclose(x, whole[:, left : left + 48], atol=1e-6)
    ]
    lefts.add(left)
  assert len(lefts) > 15  # Of 23.
  assert min(lefts) <= 2 and max(lefts) >= 20


def test_positions_are_uniform_with_both_ends(tmp_path):
  path = save(ramps(16, 19), tmp_path / "x.png")
  lefts = [
    round((load(path, (16, 16), s)[0, 0, 0] + 1) * 9) for s in range(400)
  ]
  counts = np.bincount(lefts)
  assert len(counts) == 4
  assert counts.min() > 70


def test_images_are_halved_by_means_then_resized_by_cubics(tmp_path):
  values = noise(70, 150)
  path = save(values, tmp_path / "x.png")
  halves = values.reshape(35, 2, 75, 2, 3).mean(axis=(1, 3))
  image = Image.fromarray(np.round(halves).astype(np.uint8))
  # 35 x 75 covers 30 x 60 at 30 x 64.29.
  x = load(path, (30, 60))
  scale = 35 / 30
  boxes = [(k * scale, 0, k * scale + 60 * scale, 35) for k in range(5)]
  wanted = [image.resize((60, 30), Image.Resampling.BICUBIC, b) for b in boxes]
  distances = [np.abs(x - (np.float32(w) / 127.5 - 1)).max() for w in wanted]
  assert min(distances) < 0.03 < sorted(distances)[1]


def test_a_crop_lies_inside_and_shows_its_position(tmp_path):
  path = save(ramps(60, 301), tmp_path / "x.png")
  for seed in range(20):
    x = load(path, (20, 24), seed)
    columns, rows = x[..., 0], x[..., 1]
    assert (np.diff(columns, axis=1) >= 0).all()
    # All rows show, and 24 of 20 x 301 / 60 columns.
    assert rows[0].max() < -0.85 and rows[-1].min() > 0.85
    share = (columns[0, -1] - columns[0, 0]) / 2
    assert share == pytest.approx(23 / (20 * 301 / 60), abs=0.02)


@pytest.mark.parametrize("side", [33, 39, 77, 129])
def test_odd_sides_shift_nothing(tmp_path, side):
  """The last pixel of a halved image may be filled in part."""
  path = save(ramps(side, side), tmp_path / "x.png")
  places = ((np.arange(16) + 0.5) * side / 16 - 0.5) / (side - 1) * 2 - 1
  x = load(path, (16, 16))[2:-2, 2:-2]
  np.testing.assert_allclose(x[0, :, 0], places[2:-2], atol=0.015)
  np.testing.assert_allclose(x[:, 0, 1], places[2:-2], atol=0.015)


def test_equal_random_numbers_give_equal_crops(tmp_path):
  path = save(noise(40, 90), tmp_path / "x.jpg")
  first = load(path, (16, 16), 5, flip=True)
  np.testing.assert_array_equal(first, load(path, (16, 16), 5, flip=True))
  assert not np.array_equal(first, load(path, (16, 16), 6, flip=True))


def test_every_other_crop_is_flipped_and_none_by_default(tmp_path):
  path = save(ramps(20, 40), tmp_path / "x.png")
  flipped = 0
  for seed in range(60):
    plain = load(path, (16, 16), seed)
    assert plain[0, 0, 0] < plain[0, -1, 0]
    other = load(path, (16, 16), seed, flip=True)
    mirrored = other[0, 0, 0] > other[0, -1, 0]
    np.testing.assert_array_equal(other, plain[:, ::-1] if mirrored else plain)
    flipped += mirrored
  assert 18 <= flipped <= 42


# What a camera stores of an upright scene, by orientation.
STORED = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_photographs_are_turned_upright(tmp_path, suffix):
  scene = ramps(40, 64)
  for orientation, stored in STORED.items():
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(
      np.ascontiguousarray(stored(scene)),
      tmp_path / f"{orientation}.{suffix}",
      **{"exif": exif, "quality": 95, "lossless": True},
    )
    assert image_file.size(str(path)) == (40, 64)
    whole = load(path, (40, 64))
    wanted = scene.astype(np.float32) / 127.5 - 1
    assert np.abs(whole - wanted).mean() < 0.02
    assert np.abs(load(path, (20, 32)) - wanted[::2, ::2]).mean() < 0.04


def test_broken_exif_data_do_not_spoil_an_image(tmp_path):
  path = save(noise(20, 30), tmp_path / "x.jpg", exif=b"Exif\0\0nonsense")
  assert image_file.size(str(path)) == (20, 30)
  load(path, (16, 16))


RED = (255, 0, 0)


def of_mode(mode):
  """A red image, or a gray one of 0.2, in a mode and a format."""
  if mode.startswith("I;16"):
    return Image.fromarray(np.full((20, 24), 13_107, np.uint16)), "png"
  if mode == "I":
    return Image.fromarray(np.full((20, 24), 13_107, np.int32)), "tif"
  if mode == "F":
    return Image.fromarray(np.full((20, 24), 0.2, np.float32)), "tif"
  if mode in ("L", "LA"):
    return Image.new("L", (24, 20), 51).convert(mode), "png"
  image = Image.new("RGB", (24, 20), RED).convert(mode)
  return image, {"CMYK": "jpg", "YCbCr": "tif"}.get(mode, "png")


@pytest.mark.parametrize(
  "mode",
  ["L", "LA", "I;16", "I", "F", "RGB", "RGBA", "P", "CMYK", "YCbCr"],
)
def test_every_mode(tmp_path, mode):
  image, suffix = of_mode(mode)
  path = save(image, tmp_path / f"x.{suffix}")
  with Image.open(path) as stored:
    assert stored.mode == mode
  gray = mode in ("L", "LA", "I;16", "I", "F")
  color, shade = ((-0.6,) * 3, -0.6) if gray else ((1, -1, -1), -0.404)
  np.testing.assert_allclose(
    load(path, (16, 16)), np.broadcast_to(color, (16, 16, 3)), atol=0.03
  )
  np.testing.assert_allclose(load(path, (16, 16), channels=1), shade, atol=0.03)


def test_two_colors(tmp_path):
  path = save(Image.new("1", (9, 7), 1), tmp_path / "x.png")
  np.testing.assert_array_equal(load(path, (8, 8)), 1)


def test_transparent_pixels_are_white(tmp_path):
  clear = np.zeros((20, 20, 4), np.uint8)
  for suffix in ("png", "webp"):
    path = save(clear, tmp_path / f"x.{suffix}", lossless=True)
    np.testing.assert_array_equal(load(path, (16, 16)), 1)
  table = Image.new("P", (20, 20), 0)
  table.putpalette([255, 0, 0, 0, 0, 255])
  for suffix in ("png", "gif"):
    path = save(table, tmp_path / f"t.{suffix}", transparency=0)
    np.testing.assert_array_equal(load(path, (16, 16)), 1)
  deep = Image.fromarray(np.zeros((20, 20), np.uint16))
  path = save(deep, tmp_path / "deep.png", transparency=0)
  np.testing.assert_array_equal(load(path, (16, 16), channels=1), 1)


def test_values_beyond_white_are_unreadable(tmp_path):
  path = save(np.full((20, 20), 2, np.float32), tmp_path / "x.tif")
  with pytest.raises(
    UnreadableImage, match=r"x\.tif: image of mode F with values from 2 to 2"
  ):
    load(path, (16, 16))


def test_the_first_frame_of_an_animation_is_used(tmp_path):
  first, second = (Image.new("L", (20, 20), shade) for shade in (0, 255))
  path = tmp_path / "x.gif"
  first.save(path, save_all=True, append_images=[second])
  np.testing.assert_array_equal(load(path, (16, 16)), -1)


@pytest.mark.parametrize(
  ("shape", "orientation", "channels"),
  [
    ((300, 420), 1, 3),
    ((257, 515), 6, 3),
    ((515, 263), 6, 1),
    ((515, 263), 1, 1),
  ],
)
def test_drafts_are_as_good(tmp_path, shape, orientation, channels):
  smooth = Image.fromarray(noise(12, 12)).resize(
    shape[::-1], Image.Resampling.BICUBIC
  )
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  path = save(smooth, tmp_path / "x.jpg", quality=92, exif=exif)
  for size in ((32, 48), (64, 64), (128, 128)):
    draft, full = (
      load(path, size, 3, channels, draft=draft) for draft in (True, False)
    )
    assert np.abs(draft - full).mean() < 0.01  # Of 2; about a shade.


def test_files_that_are_not_images(tmp_path, monkeypatch):
  whole = save(noise(64, 64), tmp_path / "whole.jpg").read_bytes()
  (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "text.jpg").write_text("a snowman")
  (tmp_path / "empty.jpg").write_bytes(b"")
  png = save(noise(64, 64), tmp_path / "whole.png").read_bytes()
  (tmp_path / "half.png").write_bytes(png[: len(png) // 2])
  for name, message in {
    "half.jpg": "truncated",
    "half.png": "truncated",
    "text.jpg": "not an image that can be read",
    "empty.jpg": "not an image that can be read",
    "none.jpg": "No such file",
  }.items():
    with pytest.raises(UnreadableImage, match=f"{name}: .*{message}"):
      load(tmp_path / name, (16, 16))
  with pytest.raises(UnreadableImage, match="Is a directory"):
    load(tmp_path, (16, 16))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  for read in (lambda path: load(path, (16, 16)), image_file.size):
    with pytest.raises(UnreadableImage, match=r"whole\.jpg: too many.*smaller"):
      read(str(tmp_path / "whole.jpg"))


def test_errors_of_the_caller_pass(tmp_path):
  path = save(noise(20, 20), tmp_path / "x.png")
  with pytest.raises(KeyError):
    crop.load(str(path), (16, 16), np.random.default_rng(0), 2, False)


def test_encoded_crops_are_shrunk_and_gray_ones_stay_gray():
  suffix, data = image_file.encode(Image.new("L", (1400, 700), 77), 640)
  with Image.open(io.BytesIO(data)) as image:
    assert (suffix, image.mode, image.size) == (".png", "L", (640, 320))
  suffix, data = image_file.encode(Image.new("RGBA", (30, 20), RED), 640)
  with Image.open(io.BytesIO(data)) as image:
    assert (suffix, image.mode, image.size) == (".jpg", "RGB", (30, 20))
