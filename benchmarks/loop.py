"""Overhead of the training loop over the step: python -m benchmarks.loop

Runs the compiled step on one batch, and the whole loop of `lumina_jax.train`
with prefetching, metrics and watchdog, in turn. The number of rows is doubled
until a step takes `--milliseconds`. Prints the ratio of both: with batches that
are ready, which shows the loop alone, and with digits that are loaded at the
same time, which on a CPU competes with the step for cores.
"""

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
  """A run on digits without checkpoints and samples."""
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


class StepOnly:
  """The compiled step, on a batch that is on the device."""

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
    """Seconds per step of so many successive steps."""
    with jax.set_mesh(self._mesh):
      start = time.monotonic()
      for _ in range(count):
        self._state, values = self._step(self._state, self._batch)
      jax.block_until_ready(values)
    return (time.monotonic() - start) / count


def loop_seconds(config: RunConfig, ready: bool) -> float:
  """Seconds per step of the whole loop, from its metrics.

  Args:
    config: config of the run.
    ready: whether loading a batch takes no time.
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
  # The first row includes the start.
  return 1 / statistics.median(row["steps_per_second"] for row in rows[1:])


def main(_) -> None:
  logging.getLogger("absl").setLevel(logging.ERROR)
  args, rows = flags.FLAGS, 1
  while True:
    config = make_config(rows, args.steps)
    step = StepOnly(config)
    step.seconds(3)
    if step.seconds(10) >= args.milliseconds / 1000 or rows >= 512:
      break
    rows *= 2
  ratios = []
  print(f"{rows} rows of 40 tokens, {args.steps} steps a round")
  print_head(["round", "step, ms", "batches ready", "digits loaded"])
  for number in range(args.rounds):
    alone, loops = [step.seconds(args.steps // 2)], []
    for ready in (True, False):
      loops.append(loop_seconds(config, ready))
      alone.append(step.seconds(args.steps // 2))
    # Each loop is compared with the steps right before and after it.
    around = [statistics.mean(alone[i : i + 2]) for i in range(2)]
    ratios.append([a / b for a, b in zip(loops, around, strict=True)])
    print_row([f"{number + 1}", f"{1e3 * around[0]:.1f}", *_format(ratios[-1])])
  medians = map(statistics.median, zip(*ratios, strict=True))
  print_row(["median", "", *_format(medians)])


def _format(ratios: Iterable[float]) -> list[str]:
  return [f"{ratio:.3f}" for ratio in ratios]


if __name__ == "__main__":
  flags.DEFINE_float("milliseconds", 50.0, "Least time of a step.")
  flags.DEFINE_integer("steps", 200, "Steps of a round.", lower_bound=60)
  flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=1)
  app.run(main)
