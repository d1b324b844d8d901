"""What share of its time a training step waits for data:

  python -m benchmarks.data_wait

Photographs are decoded, cropped and packed while steps run. First a step is a
sleep, as where an accelerator computes and the cores are free: `Batches.read`
through the goodput tracker of `lumina_jax.train`. Then `lumina_jax.train`
itself, with a small network whose step takes the same cores: `data_wait` of its
metrics.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from benchmarks import photographs, readers
from benchmarks.table import print_head, print_row
from configs import text_to_image
from data_pipelines.batches import PREFETCH, Batches
from data_pipelines.buckets import Buckets
from data_pipelines.captioned import CaptionedConfig
from data_pipelines.records import Record
from data_pipelines.scan import scan
from data_pipelines.source_config import LoaderOptions
from lumina_jax.commands import start as entry_point
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.train import train
from lumina_jax.training import run_config
from lumina_jax.training.goodput import GoodputTracker
from lumina_jax.training.run_config import RunConfig

READINGS = (
  LoaderOptions(threads=1),
  LoaderOptions(threads=2),
  LoaderOptions(workers=1),
  LoaderOptions(workers=2),
)
FILE = "metrics.jsonl"
Wait = tuple[float, float]  # Share of the time, and seconds a step.
Found = dict[tuple[str, LoaderOptions], list[Wait]]  # By step, of each round.


def asleep(batches: Batches, seconds: float, steps: int, first: int) -> Wait:
  """Share of waiting, and seconds a step, where a step is a sleep.

  Args:
    batches: to read.
    seconds: of a step.
    steps: that count, after those whose batches were ready at the start.
    first: number of the first batch.
  """
  goodput = GoodputTracker()
  count = steps + 2 * PREFETCH
  with contextlib.closing(batches.read(first, first + count)) as reading:
    stream = goodput.track_data(reading)
    for _ in range(2 * PREFETCH):
      next(stream)
    waited, began = goodput.badput["data"], time.monotonic()
    for _ in range(steps):
      next(stream)
      time.sleep(seconds)
    taken = time.monotonic() - began
  return (goodput.badput["data"] - waited) / taken, taken / steps


def trained(
  folder: str, side: int, width: int, steps: int, reading: LoaderOptions
) -> Wait:
  """Share of waiting, and seconds a step, of a run of `lumina_jax.train`."""
  config = make_config(folder, side, width, steps, reading)
  with tempfile.TemporaryDirectory() as name:
    workdir = pathlib.Path(name)
    train(config, epath.Path(workdir))
    lines = (workdir / FILE).read_text().splitlines()
  # The first line has the steps for which batches were ready at the start.
  line = json.loads(lines[-1])
  return line["data_wait"], 1 / line["steps_per_second"]


def make_config(
  folder: str, side: int, width: int, steps: int, reading: LoaderOptions
) -> RunConfig:
  """The tiny text-to-image run on photographs, its network as wide as asked."""
  tiny = run_config.parse(text_to_image.get_config("tiny"))
  tokens, words = (side // readers.PATCH) ** 2, readers.TEXT.max_words
  data = CaptionedConfig(
    sources=(folder,),
    resolutions=(side,),
    row_tokens=readers.EACH * tokens,
    row_words=readers.EACH * words,
    row_samples=readers.EACH,
    threads=reading.threads,
    workers=reading.workers,
  )
  model = dataclasses.replace(
    tiny.model,
    channels=3,
    patch=(readers.PATCH,) * 2,
    width=width,
    cond_width=width,
    text_width=width,
  )
  training = dataclasses.replace(
    tiny.training,
    steps=2 * steps,
    batch_rows=readers.ROWS,
    log_every=steps,
    checkpoint_every=2 * steps,
    sample_every=2 * steps,
    sample_prompts=("a cat",),
    samples_per_prompt=1,
  )
  sampling = dataclasses.replace(
    tiny.sampling, solver="euler", num_inference_steps=1
  )
  sizes = dataclasses.replace(
    tiny.sizes, default=(side, side), ladder=((tokens, words, 1),), rows=1
  )
  return dataclasses.replace(
    tiny,
    data=data,
    model=model,
    text_encoder=Utf8Config(width=width, max_words=words),
    training=training,
    sampling=sampling,
    sizes=sizes,
  )


def main(_) -> None:
  args = flags.FLAGS
  print(
    f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; photographs of "
    f"{args.longer} pixels to {args.side}, batches of {readers.BATCH}; medians "
    f"of {args.rounds} rounds of {args.steps} steps, of training "
    f"{args.trainings}",
    flush=True,
  )
  with (
    tempfile.TemporaryDirectory() as name,
    tempfile.TemporaryDirectory() as cache,
  ):
    jax.config.update("jax_compilation_cache_dir", cache)  # All train one.
    photographs.write_folder(pathlib.Path(name), args.pictures, args.longer)
    (group,) = scan(name)
    found = asleep_in_turn(group.records, args)
    found |= trained_in_turn(name, args)
  print()
  print_head(["step", "read by", "waits", "range", "ms a step"])
  for (step, reading), values in found.items():
    shares, taken = np.asarray(values).T
    print_row(
      [
        *(step, named(reading), f"{np.median(shares):.1%}"),
        f"{shares.min():.1%} to {shares.max():.1%}",
        f"{1e3 * np.median(taken):.0f}",
      ]
    )


def asleep_in_turn(records: tuple[Record, ...], args: Any) -> Found:
  images = readers.source(records, Buckets([args.side], readers.PATCH))
  found: Found = {}
  for number in range(args.rounds):
    for ms in map(int, args.milliseconds):
      for reading in READINGS[: args.readings]:
        batches = readers.batches_of(images, args.side, reading)
        first = number * (args.steps + 2 * PREFETCH)
        how = asleep(batches, ms / 1e3, args.steps, first)
        found.setdefault((f"sleeps {ms} ms", reading), []).append(how)
  return found


def trained_in_turn(folder: str, args: Any) -> Found:
  found: Found = {}
  for _ in range(args.trainings):
    for reading in READINGS[: args.readings]:
      how = trained(folder, args.side, args.width, args.steps, reading)
      found.setdefault(("lumina_jax.train", reading), []).append(how)
  return found


def named(reading: LoaderOptions) -> str:
  if reading.workers:
    return readers.plural(reading.workers, "worker")
  return readers.plural(reading.threads, "thread")


if __name__ == "__main__":
  flags.DEFINE_list("milliseconds", ["50", "200"], "Steps that are sleeps.")
  flags.DEFINE_integer("side", 256, "Of the square like buckets.")
  flags.DEFINE_integer("pictures", 256, "Photographs.", lower_bound=1)
  flags.DEFINE_integer("longer", 1500, "Their longer side.", lower_bound=64)
  flags.DEFINE_integer("width", 256, "Of the network that trains.")
  flags.DEFINE_integer("steps", 20, "Of a round.", lower_bound=1)
  flags.DEFINE_integer("rounds", 5, "Of sleeping steps.", lower_bound=1)
  flags.DEFINE_integer("trainings", 2, "Rounds of training.", lower_bound=0)
  flags.DEFINE_integer(
    "readings", 2, "1 and 2 threads, then workers.", lower_bound=1
  )
  entry_point.run(main)
