"""Audio: latents `f32[T, C]` along time. No vocoder decodes them yet."""

import io
from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image

from lumina_jax.files import atomic
from lumina_jax.media import image
from lumina_jax.media.medium import Axis, Medium


def preview(latents: np.ndarray) -> Image.Image:
  """Latents as a grey picture: time from left to right, a row per channel."""
  return image.to_pil(latents.T[::-1, :, None])


def write(
  latents: np.ndarray, path: epath.Path, texts: Mapping[str, str]
) -> list[epath.Path]:
  """Writes latents as .npy, and a picture with the metadata beside it."""
  data = io.BytesIO()
  np.save(data, latents, allow_pickle=False)
  atomic.write_bytes(path, data.getvalue())
  picture = path.with_suffix(".png")
  image.save(image.enlarge(preview(latents), 8), picture, texts)
  return [path, picture]


AUDIO = Medium(
  name="audio",
  plural="audio",
  axes=(Axis("audio_length_in_s", "seconds", "Length in seconds."),),
  output="audios",
  per_prompt="num_waveforms_per_prompt",
  formats={},
  suffix=".npy",
  write=write,
  preview=preview,
)
