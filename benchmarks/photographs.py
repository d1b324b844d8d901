"""Made photographs: a folder of JPEGs with captions, as large as real ones.

Decoding takes as long as the file is large. The strength of noise that falls
with the frequency f as f^-1.2 gives about 480 KB for 1500 x 1000 pixels at
quality 85, which a camera's pictures have as well.
"""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

FALL = 1.2
QUALITY = 85
WORDS = (
  "a an the old small bright quiet wooden orange cat house river stone tree "
  "mountain street on under beside behind near with and of in morning light "
  "rain snow sits stands runs sleeps, 2 3 7 seen from above."
)


def write_folder(
  folder: pathlib.Path, count: int, longer: int = 1500, seed: int = 0
) -> float:
  """Writes count pictures, a third of them upright, and captions beside them.

  Args:
    folder: that is there.
    count: pictures.
    longer: side in pixels; the other is 2/3 of it, both by up to a tenth less.
    seed: of pictures and captions.

  Returns:
    Mean size of a file in bytes.
  """
  rng = np.random.default_rng(seed)
  noise = _noise(longer + longer // 3, rng)
  sizes = []
  for number in range(count):
    width, height = (
      int(side * rng.uniform(0.9, 1)) for side in (longer, longer * 2 / 3)
    )
    if number % 3 == 2:
      width, height = height, width
    path = folder / f"{number:05}.jpg"
    image = Image.fromarray(_picture(noise, height, width, rng))
    image.save(path, quality=QUALITY)
    path.with_suffix(".txt").write_text(_caption(rng), encoding="utf-8")
    sizes.append(path.stat().st_size)
  return float(np.mean(sizes))


def _noise(side: int, rng: np.random.Generator) -> np.ndarray:
  """`f32[side, side, 3]` of mean 0 and deviation 1; its edges meet."""
  rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
  frequency = np.hypot(rows, columns)
  frequency[0, 0] = np.inf
  channels = []
  for _ in range(3):
    white = np.fft.rfft2(rng.standard_normal((side, side), np.float32))
    x = np.fft.irfft2(white / frequency**FALL, s=(side, side))
    channels.append(x / x.std())
  return np.stack(channels, axis=-1).astype(np.float32)


def _picture(
  noise: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
  """`u8[height, width, 3]`: two cuts of the noise, one upon the other."""

  def cut():
    top, left = (
      rng.integers(whole - part + 1)
      for whole, part in zip(noise.shape[:2], (height, width), strict=True)
    )
    return noise[top : top + height, left : left + width]

  shades = 128 + 50 * cut() + 25 * cut()[::-1]
  return np.clip(shades, 0, 255).astype(np.uint8)


def _caption(rng: np.random.Generator) -> str:
  return " ".join(rng.choice(WORDS.split(), rng.integers(16, 48)))
