"""What the loop of training costs beyond the step itself.

  python -m benchmarks.loop --milliseconds=50

Runs the compiled step on one batch again and again, and the whole loop of
`lumina_jax.train` with its reading ahead, metrics, watchdog and poll, in turns;
as many rows as make a step take about so long here. Prints the ratio: with
batches that are ready, which is the loop alone, and with digits that are
composed meanwhile, which on a CPU takes the cores that the step wants.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterable
from unittest import mock

import jax
from absl import app, flags
from etils import epath

from benchmarks.table import print_head, print_row
from configs import digits
from data_pipelines.batches import Batches
from lumina_jax import train as training
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training import data, metrics, run_config
from lumina_jax.training import step as steps
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import create_state

NEVER = 10**9


def make_config(rows: int, count: int) -> RunConfig:
  """The digits, for so many steps of so many rows, without pictures."""
  config = run_config.parse(digits.get_config())
  plan = dataclasses.replace(
    config.training,
    steps=count,
    batch_rows=rows,
    log_every=10,
    checkpoint_every=NEVER // 10 * 10,
    sample_every=NEVER,
    sample_prompts=("7",),
    samples_per_prompt=1,
  )
  return dataclasses.replace(config, training=plan)


class Bare:
  """The step alone, its batch on the device."""

  def __init__(self, config: RunConfig):
    self._mesh = make_mesh(config.mesh)
    network, rows = config.network, config.training.batch_rows
    tx = make_optimizer(config.optimizer, config.training.steps)
    batch = data.make_batches(config, self._mesh).batch(0)
    with jax.set_mesh(self._mesh):
      self._state = create_state(network, tx, self._mesh, config.seed)
      self._step = steps.compile_train_step(
        config, tx, self._state, batch, self._mesh
      )
      self._batch = steps.place_batch(batch, self._mesh, rows)

  def seconds(self, count: int) -> float:
    """Of a step, over so many that follow each other without a pause."""
    with jax.set_mesh(self._mesh):
      began = time.monotonic()
      for _ in range(count):
        self._state, values = self._step(self._state, self._batch)
      jax.block_until_ready(values)
    return (time.monotonic() - began) / count


def loop_seconds(config: RunConfig, ready: bool) -> float:
  """Of a step within the whole loop, as its metrics have it.

  Args:
    config: of the run.
    ready: whether its batches cost nothing.
  """
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    if ready:
      loaded = data.make_batches(config).load(0)
      stack.enter_context(
        mock.patch.object(Batches, "load", lambda self, i: loaded)
      )
    training.train(config, epath.Path(folder))
    rows = metrics.read(pathlib.Path(folder))
  # The first line holds what comes with the first steps.
  return 1 / statistics.median(row["steps_per_second"] for row in rows[1:])


def main(_) -> None:
  logging.getLogger("absl").setLevel(logging.ERROR)
  args, rows = flags.FLAGS, 1
  wanted = args.milliseconds / 1000
  while True:
    bare = Bare(make_config(rows, args.steps))
    bare.seconds(3)
    if bare.seconds(10) >= wanted or rows >= 512:
      break
    rows *= 2
  config = make_config(rows, args.steps)
  bare, ratios = Bare(config), []
  bare.seconds(5)
  print(f"{rows} rows of 40 tokens, {args.steps} steps a round")
  print_head(["round", "step, ms", "batches ready", "digits composed"])
  for number in range(args.rounds):
    alone, found = [bare.seconds(args.steps // 2)], []
    for ready in (True, False):
      found.append(loop_seconds(config, ready))
      alone.append(bare.seconds(args.steps // 2))
    # Each beside the steps right before and right after it.
    around = [statistics.mean(alone[i : i + 2]) for i in range(2)]
    ratios.append([a / b for a, b in zip(found, around, strict=True)])
    print_row([f"{number + 1}", f"{1e3 * around[0]:.1f}", *_show(ratios[-1])])
  medians = map(statistics.median, zip(*ratios, strict=True))
  print_row(["median", "", *_show(medians)])


def _show(ratios: Iterable[float]) -> list[str]:
  return [f"{ratio:.3f}" for ratio in ratios]


if __name__ == "__main__":
  flags.DEFINE_float("milliseconds", 50.0, "That a step shall take at least.")
  flags.DEFINE_integer("steps", 200, "Of a round.", lower_bound=30)
  flags.DEFINE_integer("rounds", 3, "How often.", lower_bound=1)
  app.run(main)
