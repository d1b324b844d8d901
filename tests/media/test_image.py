"""Image files of every mode, and what callers pass as an image."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from lumina_jax.media import image as image_file

# White, and a red that shows in full, in half and not at all.
RED = [[[255, 255, 255, 255], [255, 0, 0, 255]],
       [[255, 0, 0, 128], [255, 0, 0, 0]]]  # fmt: skip
ON_WHITE = [[[1, 1, 1], [1, -1, -1]], [[1, 0, 0], [1, 1, 1]]]
SHADES = np.arange(256, dtype=np.uint8).reshape(8, 32)
GREY = (SHADES / 127.5 - 1)[..., None]


def saved(image, path, **options):
  """An image as it comes back from a file."""
  image.save(path, **options)
  return image_file.open(path)


def close(image, expected, channels, atol=0.005):
  found = image_file.pixels(image, channels)
  assert found.dtype == np.float32
  expected = np.broadcast_to(expected, (*np.shape(expected)[:2], channels))
  np.testing.assert_allclose(found, expected, atol=atol)


def palette(indices, colours, mode="P"):
  """An image whose bytes are indices of colours."""
  image = Image.fromarray(np.asarray(indices, np.uint8)).convert(mode)
  image.putpalette(np.ravel(colours).astype(np.uint8).tobytes())
  return image


def test_grey_of_a_byte(tmp_path):
  for channels in (1, 3):
    image = saved(Image.fromarray(SHADES), tmp_path / "grey.png")
    assert image.mode == "L"
    close(image, GREY, channels, atol=1e-6)
    colours = saved(image.convert("RGB"), tmp_path / "colours.png")
    assert colours.mode == "RGB"
    close(colours, GREY, channels, atol=1e-6)


def test_black_and_white(tmp_path):
  image = Image.fromarray(SHADES > 100)
  image = saved(image, tmp_path / "two.png")
  assert image.mode == "1"
  close(image, np.where(SHADES > 100, 1, -1)[..., None], 3)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_grey_of_two_bytes(tmp_path, order):
  deep = (SHADES * np.uint16(257)).astype(order)
  image = saved(Image.fromarray(deep), tmp_path / "deep.tif")
  assert image.mode == ("I;16" if order == "<u2" else "I;16B")
  for channels in (1, 3):
    close(image, GREY, channels, atol=1e-6)
  png = saved(Image.fromarray(deep.astype("<u2")), tmp_path / "deep.png")
  assert png.mode == "I;16"
  close(png, GREY, 1, atol=1e-6)
  fine = np.uint16([[0, 1, 65_535]])  # Not rounded to bytes.
  found = image_file.pixels(Image.fromarray(fine), 1)
  np.testing.assert_allclose(found[0, :, 0], [-1, 2 / 65_535 - 1, 1], atol=1e-7)


def test_whole_numbers(tmp_path):
  image = Image.fromarray(SHADES.astype(np.int32) * 257)
  image = saved(image, tmp_path / "whole.tif")
  assert image.mode == "I"
  close(image, GREY, 3, atol=1e-6)
  for wrong in (-1, 65_536):
    with pytest.raises(ValueError, match=r"mode I with values .* to 65535"):
      image_file.pixels(Image.fromarray(np.int32([[0, wrong]])), 1)


def test_fractions(tmp_path):
  image = Image.fromarray(SHADES.astype(np.float32) / 255)
  image = saved(image, tmp_path / "fractions.tif")
  assert image.mode == "F"
  close(image, GREY, 3, atol=1e-6)
  for wrong in (-0.1, 255, np.nan, np.inf):
    with pytest.raises(ValueError, match=r"mode F .*to 1 \(white\).* scale it"):
      image_file.pixels(Image.fromarray(np.float32([[0, wrong]])), 1)


def test_transparency_becomes_white(tmp_path):
  image = Image.fromarray(np.uint8(RED))
  for name in ("red.png", "red.webp"):
    found = saved(image, tmp_path / name, lossless=True)
    assert found.mode == "RGBA"
    close(found, ON_WHITE, 3)
  grey = np.uint8([[[0, 255], [0, 128], [0, 0]]])
  found = saved(Image.fromarray(grey, "LA"), tmp_path / "grey.png")
  assert found.mode == "LA"
  for channels in (1, 3):
    close(found, [[[-1], [0], [1]]], channels)
  close(image.convert("RGBa"), ON_WHITE, 3)


def test_palettes(tmp_path):
  table = [[255, 0, 0], [0, 0, 255]]
  expected = np.asarray([[[1, -1, -1], [-1, -1, 1]]])
  for suffix in ("png", "gif"):
    found = saved(palette([[0, 1]], table), tmp_path / f"table.{suffix}")
    assert found.mode == "P"
    close(found, expected, 3)
  clear = np.asarray([[[1, 1, 1], [-1, -1, 1]]])
  for suffix in ("png", "gif"):
    file = tmp_path / f"clear.{suffix}"
    close(saved(palette([[0, 1]], table), file, transparency=0), clear, 3)
  both = palette([[0, 1]], table, "PA")
  both.putalpha(Image.fromarray(np.uint8([[0, 255]])))
  assert both.mode == "PA"
  close(both, clear, 3)


def test_a_transparent_colour(tmp_path):
  """PNGs without an alpha channel may name one such colour."""
  red = Image.fromarray(np.uint8([[[255, 0, 0], [0, 0, 255]]]))
  found = saved(red, tmp_path / "red.png", transparency=(255, 0, 0))
  close(found, [[[1, 1, 1], [-1, -1, 1]]], 3)
  black = Image.fromarray(np.uint8([[0, 51]]))
  found = saved(black, tmp_path / "grey.png", transparency=0)
  close(found, [[[1], [-0.6]]], 1)
  deep = Image.fromarray(np.uint16([[0, 51 * 257]]))
  found = saved(deep, tmp_path / "deep.png", transparency=0)
  assert found.mode == "I;16"
  close(found, [[[1], [-0.6]]], 1)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces(tmp_path, mode):
  image = Image.new("RGB", (16, 16), (255, 0, 0)).convert(mode)
  found = saved(image, tmp_path / "red.tif")
  assert found.mode == mode
  close(found, np.full((16, 16, 3), (1, -1, -1)), 3, atol=0.02)
  close(found, np.full((16, 16, 1), 76 / 127.5 - 1), 1, atol=0.02)


def test_photographs_stand_upright(tmp_path):
  image = Image.new("RGB", (32, 16), "white")
  image.paste("black", (0, 0, 16, 16))  # The left half.
  turned = Image.Exif()
  turned[0x0112] = 6  # Held so that its left is the top.
  found = saved(image, tmp_path / "photo.jpg", exif=turned, quality=95)
  assert found.size == (16, 32)
  black = np.full((16, 16, 3), -1)
  close(found, np.concatenate([black, -black]), 3, atol=0.05)


def test_images_that_cannot_be_used():
  for size, sides in (((0, 3), "0 x 3"), ((3, 0), "3 x 0")):
    for mode in ("RGB", "F", "RGBA"):
      with pytest.raises(ValueError, match=f"image of {sides} has no pixels"):
        image_file.pixels(Image.new(mode, size), 3)
  with pytest.raises(ValueError, match=r"mode LAB: .* L .*to RGB first"):
    image_file.pixels(Image.new("LAB", (2, 2)), 1)
  with pytest.raises(ValueError, match="latents of 4 channels"):
    image_file.load(Image.new("RGB", (2, 2)), 4)


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
  def refused(path, message, name="image"):
    with pytest.raises(ValueError, match=f"{name}={path}: .*{message}"):
      image_file.open(path, name)

  refused(tmp_path / "none.png", "No such file")
  refused(tmp_path, "Is a directory")
  text = tmp_path / "text.png"
  text.write_text("a snowman")
  refused(text, "not an image", "--image")
  file = tmp_path / "half.png"
  noise = np.random.default_rng(0).integers(256, size=(64, 64), dtype=np.uint8)
  Image.fromarray(noise).save(file)
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  refused(file, "truncated")
  file.write_bytes(whole)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  refused(file, "too many pixels.* make it smaller")


def test_arrays_of_bytes_and_fractions_are_images():
  whole = Image.fromarray(SHADES)
  expected = image_file.pixels(whole, 1)
  for image in (SHADES, SHADES[..., None], SHADES / 255, whole):
    for values in (image, [image]):
      (one,) = image_file.load(values, 1)
      np.testing.assert_allclose(one, expected, atol=1e-6)
  both = np.stack([SHADES, 255 - SHADES])[..., None]
  one, other = image_file.load(both, 1)
  np.testing.assert_allclose(one, expected, atol=1e-6)
  np.testing.assert_allclose(other, -expected, atol=1e-6)


class Tensor:
  """What tensors of torch offer; numpy cannot read their bfloat16."""

  def __init__(self, values, dtype):
    self.values, self.dtype = values, f"torch.{dtype}"
    self.ndim = values.ndim

  def detach(self):
    return self

  float = cpu = detach

  def numpy(self):
    return self.values.astype(np.float32)


def test_tensors_are_read_by_their_dtype():
  expected = image_file.pixels(Image.fromarray(SHADES), 1)
  for tensor in (Tensor(SHADES, "uint8"), Tensor(SHADES / 255, "bfloat16")):
    found = image_file.load(tensor, 1)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
  ("image", "message"),
  [
    ("cat.png", r"image = 'cat\.png': open it first, e\.g\. by PIL\.Image\.op"),
    (["cat.png"], r"image = 'cat\.png': open it first"),
    (pathlib.Path("cat.png"), r"Path\('cat\.png'\): open it first"),
    (b"\x89PNG", "image = bytes: open it first"),
    ([[0.0, 1.0], [1.0, 0.0]], "type list: pass a PIL image or an array"),
    ((0.5, 0.5), "type float"),
    (0.5, "type float"),
    ([None], "type NoneType"),
    ({}, "type dict"),
    (np.zeros((0, 8, 1)), r"shape \(0, 8, 1\) has no pixels"),
    (np.zeros(8), r"shape \(8,\): this pipeline takes \(H, W, 1\)"),
    (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\): .* \(H, W, 1\)"),
    (SHADES.astype(int), "from 0 to 255: pass bytes, or numbers from 0 to 1"),
    (SHADES * np.nan, "image has values that are not finite"),
  ],
)
def test_values_that_are_no_image_are_named(image, message):
  with pytest.raises(ValueError, match=message):
    image_file.load(image, 1)


def test_enlarging_repeats_every_pixel():
  small = np.random.default_rng(0).integers(0, 255, (8, 24), np.uint8)
  large = np.asarray(image_file.enlarge(Image.fromarray(small)))
  np.testing.assert_array_equal(large[::16, ::16], small)
  np.testing.assert_array_equal(large[15::16, 15::16], small)


def test_latents_of_any_number_of_channels_become_an_image():
  for channels, mode in ((1, "L"), (2, "RGB"), (3, "RGB"), (16, "RGB")):
    latents = np.random.default_rng(0).uniform(-2, 2, (4, 6, channels))
    image = image_file.to_pil(latents)
    assert image.size == (6, 4) and image.mode == mode
    if channels == 2:
      assert not np.asarray(image)[..., 2].any()


def test_saving_keeps_metadata_and_leaves_no_temporary_file(tmp_path):
  path = tmp_path / "a.png"
  image_file.save(Image.fromarray(SHADES), path, {"parameters": "größer"})
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
  found = Image.open(path)
  assert found.text == {"parameters": "größer"}
  np.testing.assert_array_equal(np.asarray(found), SHADES)
