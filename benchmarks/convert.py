"""Memory and time of converting weights: python -m benchmarks.convert

Writes a random checkpoint of a published size in the original layout, converts
it between formats, each in its own process, and prints time and peak memory.
Needs disk space for about four copies.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags
from flax import traverse_util

from lumina_jax.backbone import PUBLISHED, shapes
from lumina_jax.interop import pytorch_writer
from lumina_jax.interop.weights import Weights

PEAK = re.compile(r"peak memory [\d.]+ GB")
IDLE = """
import jax
from lumina_jax import convert
from lumina_jax.parallel import processes
jax.devices()
print(processes.peak_memory())
"""
ROOT = pathlib.Path(__file__).parent.parent
# (source, destination, layout, dtype), in order.
ROUTE = (
  ("original_float32", "ours_float32", "lumina_jax", "float32"),
  ("original_float32", "ours_bfloat16", "lumina_jax", "bfloat16"),
  ("ours_float32", "diffusers_float32", "diffusers", "float32"),
  ("ours_bfloat16", "original.pth", "lumina", "float32"),
  ("diffusers_float32", "diffusers_bfloat16", "diffusers", "bfloat16"),
)


def random_weights(network: str) -> Weights:
  """Random weights of a network, generated when they are read."""
  cfg = PUBLISHED[network]
  medium = "audio" if network.endswith("audio") else "image"
  flat = traverse_util.flatten_dict(shapes(cfg))

  def read(path, dtype=None) -> np.ndarray:
    return np.random.default_rng(0).random(flat[path].shape, np.float32)

  return Weights(cfg, medium, read)


def run(*arguments: str) -> tuple[float, str]:
  """Seconds of a Python process, and the last line that it printed."""
  start = time.perf_counter()
  command = [sys.executable, *arguments]
  finished = subprocess.run(
    command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
  )
  return time.perf_counter() - start, finished.stdout.splitlines()[-1]


def size(path: pathlib.Path) -> int:
  """Bytes of a file, or of all files in a folder; hard links count once."""
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
    pytorch_writer.write(
      random_weights(network), folder / "original_float32", "lumina"
    )
    idle = int(run("-c", IDLE)[1])
    print(f"JAX started, nothing converted: {idle / 1e9:.2f} GB")
    for source, destination, layout, dtype in ROUTE:
      seconds, line = run(
        "-m",
        "lumina_jax.convert",
        str(folder / source),
        str(folder / destination),
        f"--layout={layout}",
        f"--dtype={dtype}",
      )
      print(
        f"{source} -> {destination}: {PEAK.search(line)[0]}, {seconds:.0f} s, "
        f"{size(folder / destination) / 1e9:.2f} GB written",
        flush=True,
      )


if __name__ == "__main__":
  flags.DEFINE_enum(
    "network", "next_dit_t2i_2b_gqa", list(PUBLISHED), "Published size."
  )
  flags.DEFINE_string("folder", None, "Parent of the temporary folder.")
  app.run(main)
