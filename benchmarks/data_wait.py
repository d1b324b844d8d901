"""How long training steps wait for data: python -m benchmarks.data_wait

Photographs are decoded, cropped and packed while steps run. First a step is a
sleep, as with an accelerator that leaves the cores free: `Batches.read` with
the goodput tracker of `lumina_jax.train`. Then `lumina_jax.train` itself trains
a small network on the same cores: `data_wait` of its metrics.
"""

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

from benchmarks import loaders, photographs
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

OPTIONS = (
  LoaderOptions(threads=1),
  LoaderOptions(threads=2),
  LoaderOptions(workers=1),
  LoaderOptions(workers=2),
)
FILE = "metrics.jsonl"
Wait = tuple[float, float]  # Share of the time that is waiting, seconds a step.
# Of each round, by the kind of step and loader.
Waits = dict[tuple[str, LoaderOptions], list[Wait]]


def sleeping(batches: Batches, seconds: float, steps: int, first: int) -> Wait:
  """Measures steps that sleep.

  Args:
    batches: the batches to read.
    seconds: seconds of a step.
    steps: measured steps, after those whose batches are prefetched.
    first: number of the first batch.
  """
  goodput = GoodputTracker()
  count = steps + 2 * PREFETCH
  with contextlib.closing(batches.read(first, first + count)) as reading:
    stream = goodput.track_data(reading)
    for _ in range(2 * PREFETCH):
      next(stream)
    waited, start = goodput.badput["data"], time.monotonic()
    for _ in range(steps):
      next(stream)
      time.sleep(seconds)
    total = time.monotonic() - start
  return (goodput.badput["data"] - waited) / total, total / steps


def training(
  folder: str, side: int, width: int, steps: int, options: LoaderOptions
) -> Wait:
  """Measures a run of `lumina_jax.train`."""
  config = make_config(folder, side, width, steps, options)
  with tempfile.TemporaryDirectory() as name:
    workdir = pathlib.Path(name)
    train(config, epath.Path(workdir))
    lines = (workdir / FILE).read_text().splitlines()
  # The first row of metrics includes prefetched batches.
  line = json.loads(lines[-1])
  return line["data_wait"], 1 / line["steps_per_second"]


def make_config(
  folder: str, side: int, width: int, steps: int, options: LoaderOptions
) -> RunConfig:
  """The tiny text-to-image run, on photographs, with another width."""
  tiny = run_config.parse(text_to_image.get_config("tiny"))
  tokens, words = (side // loaders.PATCH) ** 2, loaders.TEXT.max_words
  data = CaptionedConfig(
    sources=(folder,),
    resolutions=(side,),
    row_tokens=loaders.PER_ROW * tokens,
    row_words=loaders.PER_ROW * words,
    row_samples=loaders.PER_ROW,
    threads=options.threads,
    workers=options.workers,
  )
  model = dataclasses.replace(
    tiny.model,
    channels=3,
    patch=(loaders.PATCH,) * 2,
    width=width,
    cond_width=width,
    text_width=width,
  )
  plan = dataclasses.replace(
    tiny.training,
    steps=2 * steps,
    batch_rows=loaders.ROWS,
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
    training=plan,
    sampling=sampling,
    sizes=sizes,
  )


def main(_) -> None:
  args = flags.FLAGS
  print(
    f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; photographs of "
    f"{args.longer} pixels to {args.side}, batches of {loaders.BATCH}; medians "
    f"of {args.rounds} rounds of {args.steps} steps, {args.trainings} of "
    "training",
    flush=True,
  )
  with (
    tempfile.TemporaryDirectory() as name,
    tempfile.TemporaryDirectory() as cache,
  ):
    # All runs train the same network.
    jax.config.update("jax_compilation_cache_dir", cache)
    photographs.write_folder(pathlib.Path(name), args.images, args.longer)
    (group,) = scan(name)
    waits = measure_sleeping(group.records, args) | measure_training(name, args)
  print()
  print_head(["step", "loader", "waits", "range", "ms a step"])
  for (step, options), values in waits.items():
    shares, seconds = np.asarray(values).T
    print_row(
      [
        *(step, describe(options), f"{np.median(shares):.1%}"),
        f"{shares.min():.1%} to {shares.max():.1%}",
        f"{1e3 * np.median(seconds):.0f}",
      ]
    )


def measure_sleeping(records: tuple[Record, ...], args: Any) -> Waits:
  images = loaders.make_source(records, Buckets([args.side], loaders.PATCH))
  waits: Waits = {}
  for number in range(args.rounds):
    for ms in map(int, args.milliseconds):
      for options in OPTIONS[: args.loaders]:
        batches = loaders.make_batches(images, args.side, options)
        first = number * (args.steps + 2 * PREFETCH)
        wait = sleeping(batches, ms / 1e3, args.steps, first)
        waits.setdefault((f"sleeps {ms} ms", options), []).append(wait)
  return waits


def measure_training(folder: str, args: Any) -> Waits:
  waits: Waits = {}
  for _ in range(args.trainings):
    for options in OPTIONS[: args.loaders]:
      wait = training(folder, args.side, args.width, args.steps, options)
      waits.setdefault(("lumina_jax.train", options), []).append(wait)
  return waits


def describe(options: LoaderOptions) -> str:
  if options.workers:
    return loaders.plural(options.workers, "worker")
  return loaders.plural(options.threads, "thread")


if __name__ == "__main__":
  flags.DEFINE_list("milliseconds", ["50", "200"], "Lengths of sleeping steps.")
  flags.DEFINE_integer(
    "side", 256, "Side of the square whose area buckets have."
  )
  flags.DEFINE_integer("images", 256, "Photographs.", lower_bound=1)
  flags.DEFINE_integer("longer", 1500, "Their longer side.", lower_bound=64)
  flags.DEFINE_integer("width", 256, "Width of the network.")
  flags.DEFINE_integer("steps", 20, "Steps of a round.", lower_bound=1)
  flags.DEFINE_integer("rounds", 5, "Rounds of sleeping steps.", lower_bound=1)
  flags.DEFINE_integer("trainings", 2, "Rounds of training.", lower_bound=0)
  flags.DEFINE_integer(
    "loaders", 2, "How many of: 1, 2 threads, 1, 2 workers.", lower_bound=1
  )
  entry_point.run(main)
