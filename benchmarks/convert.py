"""Memory and time of converting weights: python -m benchmarks.convert

Makes a random checkpoint of a published size in the original layout, converts
it from format to format, each in a process of its own, and prints what each
took at its peak. Needs room on the disk for about four copies.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from lumina_jax.backbone import PUBLISHED, shapes
from lumina_jax.interop import pytorch_writer
from lumina_jax.interop.lumina import published_medium
from lumina_jax.interop.weights import paths

PEAK = re.compile(r"peak memory [\d.]+ GB")
IDLE = """
import jax
from lumina_jax import convert
jax.devices()
print(convert.peak_memory())
"""
ROOT = pathlib.Path(__file__).parent.parent
# Source, destination, layout, dtype; each destination is made once.
ROUTE = (
  ("original_float32", "ours_float32", "lumina_jax", "float32"),
  ("original_float32", "ours_bfloat16", "lumina_jax", "bfloat16"),
  ("ours_float32", "diffusers_float32", "diffusers", "float32"),
  ("ours_bfloat16", "original.pth", "lumina", "float32"),
  ("diffusers_float32", "diffusers_bfloat16", "diffusers", "bfloat16"),
)


class Random:
  """Weights of a network, drawn when they are read."""

  def __init__(self, network: str):
    self.cfg = cfg = PUBLISHED[network]
    self.medium, self.args, self.ema = published_medium(network), {}, None
    leaves = jax.tree.leaves(shapes(cfg))
    self._shapes = dict(zip(paths(cfg), (x.shape for x in leaves), strict=True))

  def read(self, path, dtype=None) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.random(self._shapes[path], np.float32)


def run(*words: str) -> tuple[float, str]:
  """Seconds of a process, and the last line that it printed."""
  began = time.perf_counter()
  command = [sys.executable, *words]
  done = subprocess.run(
    command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
  )
  return time.perf_counter() - began, done.stdout.splitlines()[-1]


def size(path: pathlib.Path) -> int:
  """Bytes of a file, or of all files in a folder, hard links once."""
  files = (
    [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
  )
  return sum({f.stat().st_ino: f.stat().st_size for f in files}.values())


def main(_) -> None:
  network = flags.FLAGS.network
  leaves = jax.tree.leaves(shapes(PUBLISHED[network]))
  largest = max(x.size for x in leaves)
  print(f"{network}: largest parameter {4 * largest / 1e9:.2f} GB")
  with tempfile.TemporaryDirectory(dir=flags.FLAGS.folder) as folder:
    folder = pathlib.Path(folder)
    pytorch_writer.write(Random(network), folder / "original_float32", "lumina")
    seconds, least = run("-c", IDLE)
    print(f"JAX started, nothing converted: {int(least) / 1e9:.2f} GB")
    for source, made, layout, dtype in ROUTE:
      seconds, line = run(
        "-m",
        "lumina_jax.convert",
        str(folder / source),
        str(folder / made),
        f"--layout={layout}",
        f"--dtype={dtype}",
      )
      print(
        f"{source} -> {made}: {PEAK.search(line)[0]}, {seconds:.0f} s, "
        f"{size(folder / made) / 1e9:.2f} GB written",
        flush=True,
      )


if __name__ == "__main__":
  flags.DEFINE_enum(
    "network", "next_dit_t2i_2b_gqa", list(PUBLISHED), "Which size."
  )
  flags.DEFINE_string("folder", None, "Where to write; default: temporary.")
  app.run(main)
