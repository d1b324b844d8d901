"""Videos: frames `f32[F, H, W, C]` in [-1, 1]."""

from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image

from lumina_jax.media import image
from lumina_jax.media.medium import Axis, Medium

GAP = 1  # Pixels between frames of a strip.


def strip(video: np.ndarray) -> Image.Image:
  """The frames from left to right, a white line between them."""
  frames = to_frames(video)
  width, height = frames[0].size
  size = len(frames) * (width + GAP) - GAP, height
  sheet = Image.new(frames[0].mode, size, "white")
  for number, frame in enumerate(frames):
    sheet.paste(frame, (number * (width + GAP), 0))
  return sheet


def to_frames(video: np.ndarray) -> list[Image.Image]:
  """The frames as PIL images."""
  return [image.to_pil(frame) for frame in video]


def write(
  video: np.ndarray, path: epath.Path, texts: Mapping[str, str]
) -> list[epath.Path]:
  """Writes the frames side by side as PNG, small ones also enlarged."""
  return image.save_with_enlargement(strip(video), path, texts)


VIDEO = Medium(
  name="video",
  plural="videos",
  axes=(Axis("num_frames", "frames", "Number of frames."), *image.IMAGE.axes),
  output="frames",
  per_prompt="num_videos_per_prompt",
  formats={"pil": to_frames, "np": image.to_float, "uint8": image.to_uint8},
  suffix=".png",
  write=write,
  preview=strip,
)
