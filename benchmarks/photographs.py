"""Synthetic photographs: a folder of JPEGs with captions.

The time of decoding depends on the size of a file. Noise whose amplitude falls
with the frequency f as f^-1.2 takes about 480 KB for 1500 x 1000 pixels at
quality 85, as photographs do.
"""

import pathlib

import numpy as np
from PIL import Image

DECAY = 1.2
QUALITY = 85
WORDS = (
  "a an the old small bright quiet wooden orange cat house river stone tree "
  "mountain street on under beside behind near with and of in morning light "
  "rain snow sits stands runs sleeps, 2 3 7 seen from above."
)


def write_folder(
  folder: pathlib.Path, count: int, longer: int = 1500, seed: int = 0
) -> float:
  """Writes images, a third of them portraits, and a caption file for each.

  Args:
    folder: an existing folder.
    count: number of images.
    longer: longer side in pixels, and 1.5 times the shorter; sides vary down to
      0.9 of these.
    seed: seed of images and captions.

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
    image = Image.fromarray(_image(noise, height, width, rng))
    image.save(path, quality=QUALITY)
    path.with_suffix(".txt").write_text(_caption(rng), encoding="utf-8")
    sizes.append(path.stat().st_size)
  return float(np.mean(sizes))


def _noise(side: int, rng: np.random.Generator) -> np.ndarray:
  """Periodic noise `f32[side, side, 3]` of mean 0 and standard deviation 1."""
  rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
  frequency = np.hypot(rows, columns)
  frequency[0, 0] = np.inf
  channels = []
  for _ in range(3):
    white = np.fft.rfft2(rng.standard_normal((side, side), np.float32))
    x = np.fft.irfft2(white / frequency**DECAY, s=(side, side))
    channels.append(x / x.std())
  return np.stack(channels, axis=-1).astype(np.float32)


def _image(
  noise: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
  """An image `u8[height, width, 3]`: the sum of two crops of the noise."""

  def crop():
    top, left = (
      rng.integers(side - size + 1)
      for side, size in zip(noise.shape[:2], (height, width), strict=True)
    )
    return noise[top : top + height, left : left + width]

  values = 128 + 50 * crop() + 25 * crop()[::-1]
  return np.clip(values, 0, 255).astype(np.uint8)


def _caption(rng: np.random.Generator) -> str:
  return " ".join(rng.choice(WORDS.split(), rng.integers(16, 48)))
