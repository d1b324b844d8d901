"""Parts of scikit-learn's two photographs, with captions."""

import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

NAMES = "china", "flower"


def write_photographs(folder: pathlib.Path, parts: int) -> pathlib.Path:
  """Writes parts of many shapes, e.g. china_03.jpg and china_03.txt."""
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True, exist_ok=True)
  for name, image in zip(NAMES, load_sample_images().images, strict=True):
    for i in range(parts):
      height, width = rng.integers(40, 120, 2)
      y, x = rng.integers(300, size=2)
      part = Image.fromarray(image[y : y + height, x : x + width])
      part.save(folder / f"{name}_{i:02}.jpg")
      (folder / f"{name}_{i:02}.txt").write_text(f"{name}, part {i}")
  return folder
