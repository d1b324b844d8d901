"""Radar: a signal along time, `f32[T, 1]`."""

import io

import numpy as np
from PIL import Image, ImageDraw

from lumina_jax.files import atomic
from lumina_jax.media.medium import Axis, Medium


def write(signal, path, texts):
  data = io.BytesIO()
  np.savez(data, signal=signal, **texts)
  atomic.write_bytes(path, data.getvalue())
  return [path]


def preview(signal):
  heights = 16 - 12 * np.clip(signal[:, 0], -1, 1)
  image = Image.new("L", (len(signal), 32), "white")
  ImageDraw.Draw(image).line([*enumerate(heights)], fill="black")
  return image


RADAR = Medium(
  name="radar",
  plural="radar signals",
  axes=(Axis("radar_length_in_s", "seconds", "Length in seconds."),),
  output="signals",
  per_prompt="num_signals_per_prompt",
  formats={"np": np.asarray},
  suffix=".npz",
  write=write,
  preview=preview,
)
