"""From JPEGs to batches, here and with PyTorch: python -m benchmarks.data

Examples per second and core: a photograph is decoded, cropped to one of the
four buckets that fit it best, and its caption tokenized. Our loader is
`Batches.read` of `lumina_jax.train`; it also cuts images into patches and packs
rows. PyTorch's is a DataLoader whose dataset takes the original's steps with
the same decoder (PIL), which may halve images while it decodes (`draft`) or
not. Crops without loaders come first. The benchmark fails if the crops of both
differ.

All take turns in one process. CPU seconds include all threads and workers, but
not their start; ratios are medians over rounds. Needs Linux.
"""

import contextlib
import gc
import os
import pathlib
import tempfile
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image, features

from benchmarks import cpu_time, photographs
from benchmarks.cpu_time import Rate
from benchmarks.loaders import (
  BATCH,
  PATCH,
  Loaders,
  our_loaders,
  torch_loaders,
)
from benchmarks.table import print_head, print_row
from data_pipelines.buckets import Buckets
from data_pipelines.records import Record
from data_pipelines.scan import scan

# (ours, PyTorch's) to compare.
PAIRS = (
  ("crop, draft", "torch crop, draft"),
  ("crop, full", "torch crop, full"),
  ("crop, draft", "torch crop, full"),
  ("1 thread", "torch, 0 workers, draft"),
  ("1 thread", "torch, 0 workers, full"),
  ("2 threads", "torch, 2 workers, draft"),
  ("2 threads", "torch, 2 workers, full"),
  ("1 worker", "torch, 1 worker, draft"),
  ("1 worker", "torch, 1 worker, full"),
  ("2 workers", "torch, 2 workers, draft"),
  ("2 workers", "torch, 2 workers, full"),
)


def in_turn(
  loaders: Loaders, rounds: int, batches: int
) -> dict[str, list[Rate]]:
  """Rates of each loader, one per round, after a warm-up of one batch."""
  measured: dict[str, list[Rate]] = {name: [] for name in loaders}
  for number in range(rounds + 1):
    for name, loader in loaders.items():
      count = batches if number else 1
      # Like a DataLoader, every worker prefetches two batches.
      total = loader.workers + count + 2 * loader.workers
      with contextlib.closing(loader.open(number, total)) as stream:
        rate = cpu_time.rate(stream, count, loader.workers)
      gc.collect()  # Frees the workers' batches in shared memory.
      if number:
        measured[name].append(rate)
  return measured


def report(side: int, measured: dict[str, list[Rate]]) -> None:
  """Prints a table of all loaders, then one of all pairs."""
  print()
  print_head(
    ["side", "loader", "examples/s", "per core", "range", "CPU ms each"]
  )
  for name, rates in measured.items():
    wall, cpu = (np.asarray(x) for x in zip(*rates, strict=True))
    print_row(
      [
        *(str(side), name, f"{1 / np.median(wall):.1f}"),
        *(f"{1 / np.median(cpu):.1f}", span(1 / cpu, ".1f")),
        f"{1e3 * np.median(cpu):.1f}",
      ]
    )
  pairs = [(a, b) for a, b in PAIRS if a in measured and b in measured]
  if not pairs:
    return
  print()
  print_head(["side", "ours", "torch", "per core", "range", "wall clock"])
  for ours, other in pairs:
    cpu, wall = (ratios(measured, ours, other, key) for key in ("cpu", "wall"))
    print_row(
      [
        *(str(side), ours, other, f"{np.median(cpu):.2f}"),
        *(span(cpu, ".2f"), f"{np.median(wall):.2f}"),
      ]
    )


def ratios(
  measured: dict[str, list[Rate]], ours: str, other: str, key: str
) -> np.ndarray:
  """Time of the other loader over ours in each round; above 1 ours is faster.

  Args:
    measured: rates by loader.
    ours: our loader.
    other: the other loader.
    key: "wall" or "cpu".
  """
  pairs = zip(measured[ours], measured[other], strict=True)
  return np.asarray([getattr(b, key) / getattr(a, key) for a, b in pairs])


def span(values: np.ndarray, spec: str) -> str:
  return f"{values.min():{spec}} to {values.max():{spec}}"


def main(_) -> None:
  args = flags.FLAGS
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    size = photographs.write_folder(folder, args.images, args.longer)
    (group,) = scan(name)
    print(
      f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; PIL "
      f"{Image.__version__}, libjpeg {features.version('jpg')}\n"
      f"{len(group.records)} images of {args.longer} pixels, "
      f"{size / 1e3:.0f} KB each; medians of {args.rounds} rounds of "
      f"{args.batches} batches of {BATCH}",
      flush=True,
    )
    for side in map(int, args.sides):
      compare(group.records, side, folder, args)


def compare(
  records: tuple[Record, ...], side: int, folder: pathlib.Path, args: Any
) -> None:
  """Measures and reports one size of crops."""
  buckets = Buckets([side], PATCH)
  loaders = our_loaders(records, buckets, side, args.max_workers)
  if args.torch:
    import torch

    from benchmarks import check_crops, torch_loader

    torch_loader.use_one_thread()
    loaders |= torch_loaders(records, buckets, side, args.max_workers)
    error = check_crops.check(records[:4], side, args.longer, folder)
    print(
      f"\ntorch {torch.__version__}; largest mean difference of crops, of "
      f"values from -1 to 1: {error:.2g}",
      flush=True,
    )
  report(side, in_turn(loaders, args.rounds, args.batches))


if __name__ == "__main__":
  flags.DEFINE_list(
    "sides", ["256", "1024"], "Sides of the square whose area buckets have."
  )
  flags.DEFINE_integer("images", 256, "Photographs.", lower_bound=1)
  flags.DEFINE_integer("longer", 1500, "Their longer side.", lower_bound=64)
  flags.DEFINE_integer("batches", 8, "Batches of a round.", lower_bound=1)
  flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
  flags.DEFINE_integer("max_workers", 2, "Threads, workers.", lower_bound=1)
  flags.DEFINE_bool("torch", True, "Whether to compare with PyTorch.")
  app.run(main)
