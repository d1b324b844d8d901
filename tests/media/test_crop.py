"""Crops: of exact size, inside their picture, of every mode and format."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.source import BadRecord
from lumina_jax.media import crop
from lumina_jax.media import image_file as picture_file

ORIENTATION = 0x0112


def load(path, size, seed=0, channels=3, flip=False, **kwargs):
  rng = np.random.default_rng(seed)
  found = crop.load(str(path), size, rng, channels, flip, **kwargs)
  assert found.shape == (*size, channels)
  assert found.dtype == np.float32
  assert -1 <= found.min() <= found.max() <= 1
  return found


def noise(height, width, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(values, path, **options):
  image = values if isinstance(values, Image.Image) else Image.fromarray(values)
  image.save(path, **options)
  return path


def ramps(height, width):
  """Red tells the column and green the row, both from 0 to 255."""
  rows, columns = np.mgrid[:height, :width]
  x = np.zeros((height, width, 3), np.uint8)
  x[..., 0] = np.round(255 * columns / max(width - 1, 1))
  x[..., 1] = np.round(255 * rows / max(height - 1, 1))
  return x


@pytest.mark.parametrize(
  "picture",
  [
    (1, 1),
    (3, 2),
    (33, 47),
    (48, 32),
    (1, 300),
    (300, 1),
    (97, 640),
    (129, 65),
  ],
)
@pytest.mark.parametrize("size", [(32, 48), (48, 32), (16, 16)])
def test_crops_have_their_size_whatever_the_picture(tmp_path, picture, size):
  for name in ("x.png", "x.jpg"):
    path = saved(noise(*picture), tmp_path / name)
    for seed in range(3):
      load(path, size, seed)


def test_what_is_large_enough_by_a_side_stays_as_it_is(tmp_path):
  values = noise(32, 70)
  path = saved(values, tmp_path / "x.png")
  whole = values.astype(np.float32) / 127.5 - 1
  lefts = set()
  for seed in range(60):
    found = load(path, (32, 48), seed)
    places = [
      left
      for left in range(70 - 48 + 1)
      if np.allclose(found, whole[:, left : left + 48], atol=1e-6)
    ]
    assert len(places) == 1
    lefts.add(places[0])
  assert len(lefts) > 15  # Of 23.
  assert min(lefts) <= 2 and max(lefts) >= 20


def test_places_are_drawn_equally_often_with_both_ends(tmp_path):
  path = saved(ramps(16, 19), tmp_path / "x.png")
  lefts = [
    round((load(path, (16, 16), s)[0, 0, 0] + 1) * 9) for s in range(400)
  ]
  counts = np.bincount(lefts)
  assert len(counts) == 4
  assert counts.min() > 70


def test_crops_are_halved_by_means_then_resized_by_cubics(tmp_path):
  values = noise(70, 150)
  path = saved(values, tmp_path / "x.png")
  halves = values.reshape(35, 2, 75, 2, 3).mean(axis=(1, 3))
  image = Image.fromarray(np.round(halves).astype(np.uint8))
  # 35 x 75 covers 30 x 60 at 30 x 64.29.
  found = load(path, (30, 60))
  scale = 35 / 30
  boxes = [(k * scale, 0, k * scale + 60 * scale, 35) for k in range(5)]
  wanted = [image.resize((60, 30), Image.Resampling.BICUBIC, b) for b in boxes]
  distances = [
    np.abs(found - (np.float32(w) / 127.5 - 1)).max() for w in wanted
  ]
  assert min(distances) < 0.03 < sorted(distances)[1]


def test_a_crop_lies_inside_and_shows_its_place(tmp_path):
  path = saved(ramps(60, 301), tmp_path / "x.png")
  for seed in range(20):
    x = load(path, (20, 24), seed)
    columns, rows = x[..., 0], x[..., 1]
    assert (np.diff(columns, axis=1) >= 0).all()
    # All rows show, and 24 of 20 x 301 / 60 columns.
    assert rows[0].max() < -0.85 and rows[-1].min() > 0.85
    share = (columns[0, -1] - columns[0, 0]) / 2
    assert share == pytest.approx(23 / (20 * 301 / 60), abs=0.02)


@pytest.mark.parametrize("side", [33, 39, 77, 129])
def test_what_halving_leaves_over_moves_nothing(tmp_path, side):
  """The last pixel of a halved picture may stand for a part of one."""
  path = saved(ramps(side, side), tmp_path / "x.png")
  places = ((np.arange(16) + 0.5) * side / 16 - 0.5) / (side - 1) * 2 - 1
  found = load(path, (16, 16))[2:-2, 2:-2]
  np.testing.assert_allclose(found[0, :, 0], places[2:-2], atol=0.015)
  np.testing.assert_allclose(found[:, 0, 1], places[2:-2], atol=0.015)


def test_the_same_numbers_give_the_same_crop(tmp_path):
  path = saved(noise(40, 90), tmp_path / "x.jpg")
  first = load(path, (16, 16), 5, flip=True)
  np.testing.assert_array_equal(first, load(path, (16, 16), 5, flip=True))
  assert not np.array_equal(first, load(path, (16, 16), 6, flip=True))


def test_every_other_crop_is_flipped_and_none_unless_asked(tmp_path):
  path = saved(ramps(20, 40), tmp_path / "x.png")
  flipped = 0
  for seed in range(60):
    plain = load(path, (16, 16), seed)
    assert plain[0, 0, 0] < plain[0, -1, 0]
    other = load(path, (16, 16), seed, flip=True)
    turned = other[0, 0, 0] > other[0, -1, 0]
    np.testing.assert_array_equal(other, plain[:, ::-1] if turned else plain)
    flipped += turned
  assert 18 <= flipped <= 42


# What a camera stores if the scene is upright after each orientation.
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
def test_photographs_stand_upright(tmp_path, suffix):
  scene = ramps(40, 64)
  for orientation, stored in STORED.items():
    notes = Image.Exif()
    notes[ORIENTATION] = orientation
    path = saved(
      np.ascontiguousarray(stored(scene)),
      tmp_path / f"{orientation}.{suffix}",
      **{"exif": notes, "quality": 95, "lossless": True},
    )
    assert picture_file.size(str(path)) == (40, 64)
    whole = load(path, (40, 64))
    wanted = scene.astype(np.float32) / 127.5 - 1
    assert np.abs(whole - wanted).mean() < 0.02
    assert np.abs(load(path, (20, 32)) - wanted[::2, ::2]).mean() < 0.04


def test_broken_notes_do_not_spoil_a_picture(tmp_path):
  path = saved(noise(20, 30), tmp_path / "x.jpg", exif=b"Exif\0\0nonsense")
  assert picture_file.size(str(path)) == (20, 30)
  load(path, (16, 16))


RED = (255, 0, 0)


def of_mode(mode):
  """A red picture, or a grey one of 0.2, in a mode and a format."""
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
  path = saved(image, tmp_path / f"x.{suffix}")
  with Image.open(path) as stored:
    assert stored.mode == mode
  grey = mode in ("L", "LA", "I;16", "I", "F")
  colour, shade = ((-0.6,) * 3, -0.6) if grey else ((1, -1, -1), -0.404)
  np.testing.assert_allclose(
    load(path, (16, 16)), np.broadcast_to(colour, (16, 16, 3)), atol=0.03
  )
  np.testing.assert_allclose(load(path, (16, 16), channels=1), shade, atol=0.03)


def test_two_colours(tmp_path):
  path = saved(Image.new("1", (9, 7), 1), tmp_path / "x.png")
  np.testing.assert_array_equal(load(path, (8, 8)), 1)


def test_what_shows_through_is_white(tmp_path):
  clear = np.zeros((20, 20, 4), np.uint8)
  for suffix in ("png", "webp"):
    path = saved(clear, tmp_path / f"x.{suffix}", lossless=True)
    np.testing.assert_array_equal(load(path, (16, 16)), 1)
  table = Image.new("P", (20, 20), 0)
  table.putpalette([255, 0, 0, 0, 0, 255])
  for suffix in ("png", "gif"):
    path = saved(table, tmp_path / f"t.{suffix}", transparency=0)
    np.testing.assert_array_equal(load(path, (16, 16)), 1)
  deep = Image.fromarray(np.zeros((20, 20), np.uint16))
  path = saved(deep, tmp_path / "deep.png", transparency=0)
  np.testing.assert_array_equal(load(path, (16, 16), channels=1), 1)


def test_values_beyond_white_are_named(tmp_path):
  path = saved(np.full((20, 20), 2, np.float32), tmp_path / "x.tif")
  with pytest.raises(
    BadRecord, match=r"x\.tif: image of mode F with values from 2 to 2"
  ):
    load(path, (16, 16))


def test_of_moving_pictures_the_first_frame_counts(tmp_path):
  first, second = (Image.new("L", (20, 20), shade) for shade in (0, 255))
  path = tmp_path / "x.gif"
  first.save(path, save_all=True, append_images=[second])
  np.testing.assert_array_equal(load(path, (16, 16)), -1)


@pytest.mark.parametrize("picture", [(300, 420), (257, 515), (515, 263)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("channels", [1, 3])
def test_drafts_are_as_good(tmp_path, picture, orientation, channels):
  smooth = Image.fromarray(noise(12, 12)).resize(
    picture[::-1], Image.Resampling.BICUBIC
  )
  notes = Image.Exif()
  notes[ORIENTATION] = orientation
  path = saved(smooth, tmp_path / "x.jpg", quality=92, exif=notes)
  for size in ((32, 48), (64, 64), (128, 128)):
    draft, full = (
      load(path, size, 3, channels, draft=draft) for draft in (True, False)
    )
    assert np.abs(draft - full).mean() < 0.01  # Of 2; about a shade.


def test_files_that_are_no_pictures(tmp_path, monkeypatch):
  whole = saved(noise(64, 64), tmp_path / "whole.jpg").read_bytes()
  (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "text.jpg").write_text("a snowman")
  (tmp_path / "empty.jpg").write_bytes(b"")
  png = saved(noise(64, 64), tmp_path / "whole.png").read_bytes()
  (tmp_path / "half.png").write_bytes(png[: len(png) // 2])
  for name, said in {
    "half.jpg": "truncated",
    "half.png": "truncated",
    "text.jpg": "no picture that can be read",
    "empty.jpg": "no picture that can be read",
    "none.jpg": "No such file",
  }.items():
    with pytest.raises(BadRecord, match=f"{name}: .*{said}"):
      load(tmp_path / name, (16, 16))
  with pytest.raises(BadRecord, match="Is a directory"):
    load(tmp_path, (16, 16))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  for read in (lambda path: load(path, (16, 16)), picture_file.size):
    with pytest.raises(BadRecord, match=r"whole\.jpg: too many.*smaller"):
      read(str(tmp_path / "whole.jpg"))


def test_the_callers_faults_are_not_the_pictures(tmp_path):
  path = saved(noise(20, 20), tmp_path / "x.png")
  with pytest.raises(KeyError):
    crop.load(str(path), (16, 16), np.random.default_rng(0), 2, False)
