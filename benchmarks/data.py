"""From JPEGs to batches, here and with PyTorch: python -m benchmarks.data

Examples a second of a core: a photograph is decoded, cropped to one of the four
buckets that fit it best, and its caption tokenized. Ours is `Batches.read`,
which `lumina_jax.train` reads (it also cuts pictures into patches and packs
rows); theirs a torch DataLoader whose dataset takes the original's steps, the
same decoder (PIL) with and without leave to halve pictures while it decodes
(`draft`). Crops alone come first, without loaders. Crops of both have to be
alike, or the benchmark fails.

All take turns in one process. CPU seconds are those of all threads and workers,
without their start; ratios are medians of those of each round. Needs Linux.
"""

from __future__ import annotations

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
from benchmarks.readers import BATCH, PATCH, Contestants, ours, theirs
from benchmarks.table import print_head, print_row
from data_pipelines.buckets import Buckets
from data_pipelines.records import Record
from data_pipelines.scan import scan

# Ours and theirs, of equal numbers of makers.
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
  contestants: Contestants, rounds: int, batches: int
) -> dict[str, list[Rate]]:
  """What an example takes each in each round, after one batch not counted."""
  taken: dict[str, list[Rate]] = {name: [] for name in contestants}
  for number in range(rounds + 1):
    for name, one in contestants.items():
      count = batches if number else 1
      # As a DataLoader: two batches on their way for every worker.
      whole = one.makers + count + 2 * one.makers
      with contextlib.closing(one.open(number, whole)) as stream:
        rate = cpu_time.rate(stream, count, one.makers)
      gc.collect()  # Shared memory of workers' batches.
      if number:
        taken[name].append(rate)
  return taken


def report(side: int, taken: dict[str, list[Rate]]) -> None:
  """Every contestant a line, then every pair."""
  print()
  print_head(["side", "who", "examples/s", "of a core", "range", "CPU ms each"])
  for name, rates in taken.items():
    wall, cpu = (np.asarray(x) for x in zip(*rates, strict=True))
    print_row(
      [
        *(str(side), name, f"{1 / np.median(wall):.1f}"),
        *(f"{1 / np.median(cpu):.1f}", span(1 / cpu, ".1f")),
        f"{1e3 * np.median(cpu):.1f}",
      ]
    )
  pairs = [(a, b) for a, b in PAIRS if a in taken and b in taken]
  if not pairs:
    return
  print()
  print_head(["side", "ours", "theirs", "of a core", "range", "of the clock"])
  for mine, other in pairs:
    cpu, wall = (ratios(taken, mine, other, of) for of in ("cpu", "wall"))
    print_row(
      [
        *(str(side), mine, other, f"{np.median(cpu):.2f}"),
        *(span(cpu, ".2f"), f"{np.median(wall):.2f}"),
      ]
    )


def ratios(taken: dict[str, list[Rate]], mine: str, other: str, of: str) -> Any:
  """Theirs over ours of each round: above 1 we are faster."""
  pairs = zip(taken[mine], taken[other], strict=True)
  return np.asarray([getattr(b, of) / getattr(a, of) for a, b in pairs])


def span(values: np.ndarray, form: str) -> str:
  return f"{values.min():{form}} to {values.max():{form}}"


def main(_) -> None:
  args = flags.FLAGS
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    size = photographs.write_folder(folder, args.pictures, args.longer)
    (group,) = scan(name)
    print(
      f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; PIL "
      f"{Image.__version__}, libjpeg {features.version('jpg')}\n"
      f"{len(group.records)} pictures of {args.longer} pixels, "
      f"{size / 1e3:.0f} KB each; medians of {args.rounds} rounds of "
      f"{args.batches} batches of {BATCH}",
      flush=True,
    )
    for side in map(int, args.sides):
      compare(group.records, side, folder, args)


def compare(
  records: tuple[Record, ...], side: int, folder: pathlib.Path, args: Any
) -> None:
  """Measures crops of one side."""
  buckets = Buckets([side], PATCH)
  contestants = ours(records, buckets, side, args.most)
  if args.torch:
    from benchmarks import crops_alike, torch_loader

    contestants |= theirs(records, buckets, side, args.most)
    apart = crops_alike.check(records[:4], side, args.longer, folder)
    print(
      f"\n{torch_loader.describe()}; crops, from -1 to 1, differ by "
      f"{apart:.2g} in the mean at the most",
      flush=True,
    )
  report(side, in_turn(contestants, args.rounds, args.batches))


if __name__ == "__main__":
  flags.DEFINE_list("sides", ["256", "1024"], "Of the square like buckets.")
  flags.DEFINE_integer("pictures", 256, "Photographs.", lower_bound=1)
  flags.DEFINE_integer("longer", 1500, "Their longer side.", lower_bound=64)
  flags.DEFINE_integer("batches", 8, "Of a round.", lower_bound=1)
  flags.DEFINE_integer("rounds", 5, "Rounds that are timed.", lower_bound=1)
  flags.DEFINE_integer("most", 2, "Threads and workers.", lower_bound=1)
  flags.DEFINE_bool("torch", True, "Whether to compare with PyTorch.")
  app.run(main)
