"""What a call of the pipeline hands back: pictures of several kinds.

A picture is `f32[H, W, C]`, a video `f32[T, H, W, C]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Output:
  """What a call returns.

  Attributes:
    images: one for each prompt times num_images_per_prompt.
    evaluations: of the velocity for each picture, by the batch that it was in;
      guidance asks the network for two branches in each.
  """

  images: list[Any]
  evaluations: list[int] = dataclasses.field(default_factory=list)

  def __getitem__(self, index: int) -> list[Any]:
    """As a tuple of one, which return_dict=False gives."""
    return (self.images,)[index]


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Pixels `f32[H, W, C]` in [-1, 1] -> `u8[H, W, C]`."""
  return np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)


def to_float(image: np.ndarray) -> np.ndarray:
  """Pixels `f32[H, W, C]` in [-1, 1] -> `f32[H, W, C]` in [0, 1]."""
  return (np.clip(image, -1, 1) + 1) / 2


def side_by_side(video: np.ndarray) -> np.ndarray:
  """Frames `u8[T, H, W, C]` from left to right, a white line between them."""
  widths = (0, 0), (0, 0), (0, 1), (0, 0)
  lined = np.pad(video, widths, constant_values=255)
  return np.concatenate(list(lined), axis=1)[:, :-1]


def to_pil(image: np.ndarray) -> Image.Image:
  """Grey or colours; of latents their first three channels, as colours.

  A video `f32[T, H, W, C]` becomes one picture, its frames side by side.
  """
  pixels = to_uint8(image)
  if pixels.ndim == 4:
    pixels = side_by_side(pixels)
  if pixels.shape[-1] == 1:
    return Image.fromarray(pixels[..., 0])
  # Latents without a decoder show shapes, not what the picture looks like.
  pixels = pixels[..., :3]
  missing = 3 - pixels.shape[-1]
  return Image.fromarray(np.pad(pixels, ((0, 0), (0, 0), (0, missing))))


LATENT = "latent"
KINDS: Mapping[str, Callable[[np.ndarray], Any]] = {
  "pil": to_pil,
  "np": to_float,
  "uint8": to_uint8,
  LATENT: np.asarray,
}


def kind(name: str) -> Callable[[np.ndarray], Any]:
  """How pictures are handed back.

  Raises:
    ValueError: for an unknown output_type.
  """
  if name not in KINDS:
    known = ", ".join(KINDS)
    hint = "; numpy's arrays become torch's by torch.from_numpy"
    raise ValueError(
      f"output_type {name!r}: use one of {known}{hint if name == 'pt' else ''}"
    )
  return KINDS[name]


def check_finite(image: np.ndarray, what: str, dtype: str) -> None:
  """Refuses a picture that is no picture, before it is saved as a black one.

  Args:
    image: latents or pixels.
    what: that they are, and of which prompt.
    dtype: that they were computed in.

  Raises:
    FloatingPointError: if a value is not finite.
  """
  wrong = np.size(image) - np.count_nonzero(np.isfinite(image))
  if wrong:
    advice = (
      "the weights themselves may be broken, or guidance_scale is too high"
      if dtype == "float32"
      else f"{dtype} may be too coarse for this network: load it with "
      'dtype="float32"'
    )
    raise FloatingPointError(
      f"{what}: {wrong} of {np.size(image)} values are not finite, so there is "
      f"no picture; {advice}"
    )
