"""Images: pixels `f32[H, W, C]` in [-1, 1], of 1 or 3 channels."""

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from lumina_jax.files import atomic, numbers
from lumina_jax.media import image_file
from lumina_jax.media.medium import Axis, Medium

ENLARGE = 16
LARGE = 64  # Pixels; images with both sides above need no enlarging.


def to_uint8(image: np.ndarray) -> np.ndarray:
  """`f32[H, W, C]` in [-1, 1] -> `u8[H, W, C]`."""
  return np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)


def to_float(image: np.ndarray) -> np.ndarray:
  """`f32[H, W, C]` in [-1, 1] -> `f32[H, W, C]` in [0, 1]."""
  return (np.clip(image, -1, 1) + 1) / 2


def to_pil(image: np.ndarray) -> Image.Image:
  """A grey or RGB image; of latents the first three channels as RGB."""
  pixels = to_uint8(image)
  if pixels.shape[-1] == 1:
    return Image.fromarray(pixels[..., 0])
  # Latents that no codec decodes show shapes only.
  pixels = pixels[..., :3]
  missing = 3 - pixels.shape[-1]
  return Image.fromarray(np.pad(pixels, ((0, 0), (0, 0), (0, missing))))


def enlarge(image: Image.Image, factor: int = ENLARGE) -> Image.Image:
  """Repeats every pixel, so that small images are visible in a viewer."""
  size = image.width * factor, image.height * factor
  return image.resize(size, Image.Resampling.NEAREST)


def is_large(image: Image.Image) -> bool:
  """Whether an image is visible without enlarging."""
  return min(image.size) > LARGE


def save(
  image: Image.Image,
  path: epath.PathLike,
  texts: Mapping[str, str] | None = None,
) -> None:
  """Writes a PNG atomically, on a disk or in a bucket.

  Args:
    image: to write.
    path: of the file.
    texts: metadata by keyword; PIL reads them as `Image.text`.
  """
  info = PngInfo()
  for keyword, text in (texts or {}).items():
    info.add_text(keyword, text)
  data = io.BytesIO()
  image.save(data, format="PNG", pnginfo=info)
  atomic.write_bytes(path, data.getvalue())


def save_with_enlargement(
  image: Image.Image, path: epath.Path, texts: Mapping[str, str] | None = None
) -> list[epath.Path]:
  """Writes a PNG and, if it is small, an enlarged one beside it."""
  save(image, path, texts)
  if is_large(image):
    return [path]
  large = path.with_name(f"{path.stem}_x{ENLARGE}.png")
  save(enlarge(image), large, texts)
  return [path, large]


def open(path: str | os.PathLike[str], name: str = "image") -> Image.Image:
  """Opens an image file, turned upright.

  Args:
    path: of the file.
    name: argument or flag that named it, for messages.

  Raises:
    ValueError: if it cannot be read, or is not an image.
  """
  try:
    with image_file.open_image(str(epath.Path(path).expanduser())) as image:
      return ImageOps.exif_transpose(image.copy())
  except image_file.UnreadableImage as error:
    raise ValueError(f"{name}={error}") from error


def load(image: Any, channels: int) -> list[np.ndarray]:
  """Initial images `f32[H, W, C]` in [-1, 1], one or one for each prompt.

  Args:
    image: a PIL image, `u8[H, W, C]`, or `f32[H, W, C]` in [0, 1], as calls
      return them; or one for each prompt.
    channels: C of the pipeline: 1 = grey, 3 = RGB.

  Raises:
    ValueError: if an image is not one of these.
  """
  if channels not in image_file.MODES:
    raise ValueError(
      f"image: this pipeline generates latents of {channels} channels; load it "
      "with a vae"
    )
  several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
  return [pixels(one, channels) for one in (image if several else [image])]


def pixels(image: Any, channels: int) -> np.ndarray:
  """An image of a caller as `f32[H, W, C]` in [-1, 1].

  Transparency becomes white. White is 255 in bytes, 65535 in PIL's modes I;16
  and I, and 1 in mode F and in floats.

  Raises:
    ValueError: naming what does not fit.
  """
  if isinstance(image, Image.Image):
    return _from_pil(image, channels)
  if isinstance(image, (str, bytes, os.PathLike)):
    shown = "bytes" if isinstance(image, bytes) else repr(image)
    raise ValueError(f"image = {shown}: open it first, e.g. by PIL.Image.open")
  if not hasattr(image, "ndim"):
    raise ValueError(
      f"image has type {type(image).__name__}: pass a PIL image or an array, "
      "or a list of them, one for each prompt"
    )
  return _from_array(image, channels)


def _from_pil(image: Image.Image, channels: int) -> np.ndarray:
  if 0 in image.size:
    raise ValueError(f"image of {image.width} x {image.height} has no pixels")
  if image_file.is_deep(image):
    # Pillow's own conversion to bytes would clip at 255.
    grey = image_file.shades(image)[..., None]
    return np.repeat(grey * 2 - 1, channels, axis=-1)
  mode = image_file.MODES[channels]
  try:
    plain = image_file.on_white(image).convert(mode)
  except ValueError as error:
    raise ValueError(
      f"image of mode {image.mode}: Pillow cannot convert it to {mode} "
      f"({error}); convert it to RGB first"
    ) from error
  values = np.asarray(plain, np.float32)
  return values.reshape(image.height, image.width, channels) / 127.5 - 1


def _from_array(image: Any, channels: int) -> np.ndarray:
  in_bytes = str(getattr(image, "dtype", "")).endswith("uint8")
  values = numbers.array(image, "image")
  values = values[..., None] if values.ndim == 2 else values
  if values.ndim != 3 or values.shape[-1] != channels:
    raise ValueError(
      f"image has shape {values.shape}: this pipeline takes (H, W, {channels}),"
      " channels last"
    )
  if not values.size:
    raise ValueError(f"image of shape {values.shape} has no pixels")
  if in_bytes:
    return values / 127.5 - 1
  if not 0 <= values.min() <= values.max() <= 1:
    raise ValueError(
      f"image has values from {values.min():g} to {values.max():g}: pass bytes,"
      " or numbers from 0 to 1"
    )
  return values * 2 - 1


def write(
  image: np.ndarray, path: epath.Path, texts: Mapping[str, str]
) -> list[epath.Path]:
  """Writes `f32[H, W, C]` as PNG, small ones also enlarged."""
  return save_with_enlargement(to_pil(image), path, texts)


IMAGE = Medium(
  name="image",
  plural="images",
  axes=(
    Axis("height", "pixels", "Height in pixels, or latents without a codec."),
    Axis("width", "pixels", "Width in pixels, or latents without a codec."),
  ),
  output="images",
  per_prompt="num_images_per_prompt",
  formats={"pil": to_pil, "np": to_float, "uint8": to_uint8},
  suffix=".png",
  write=write,
  preview=to_pil,
  load=load,
)
