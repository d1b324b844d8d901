"""Judges a run on the digits: python -m lumina_jax.evaluate --workdir=...

Prints and writes to `<workdir>/evaluation.json`:
  - prompt accuracy: a support vector classifier, fitted on the real training
    digits, reads every cell of generated canvases;
  - memorisation: how far generated digits are from the nearest training digit,
    beside the same for real digits never trained on;
  - the held-out flow loss by time.

All devices of all processes take part; the first process prints and writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from flax import linen as nn
from rich.console import Console
from rich.table import Table

from data_pipelines.batches import Batches
from data_pipelines.digit_captions import SIDE
from data_pipelines.digits import DigitCanvases, DigitsConfig, Split, split
from lumina_jax.commands import start as entry_point
from lumina_jax.evaluation.digits import (
  DigitClassifier,
  NearestNeighbors,
  PromptGroup,
  prompt_groups,
  split_canvases,
)
from lumina_jax.files import atomic
from lumina_jax.files.progress import Progress
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import RULES, divisors
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs import report
from lumina_jax.runs import workdir as workdirs
from lumina_jax.training import run_config
from lumina_jax.training.gradient import flow_loss
from lumina_jax.training.run_config import RunConfig

FILE = "evaluation.json"
GUIDANCE = (1.0, 1.5, 2.0)
EXTRAPOLATED = ((1, 4), (1, 5), (4, 1), (3, 3))
TIME_BINS = 10
LOSS_BATCHES = 16


def prompt_accuracy(
  pipe: LuminaPipeline,
  reader: DigitClassifier,
  neighbors: NearestNeighbors,
  chosen: Sequence[PromptGroup],
  guidance: Sequence[float],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Accuracy by canvas, phrasing, guidance; memorisation of singles."""
  table, memory = [], {}
  total = len(chosen) * len(guidance)
  with Progress("evaluating", total, unit="groups") as progress:
    for scale in guidance:
      singles = []
      for group in chosen:
        canvases = pipe(
          group.prompts,
          guidance_scale=scale,
          seed=list(range(len(group.labels))),
          height=SIDE * group.rows,
          width=SIDE * group.columns,
          output_type="uint8",
        ).images
        digits = split_canvases(canvases, group.rows, group.columns)
        if group.rows == group.columns == 1:
          singles.append(digits)
        table.append(
          {
            "canvas": f"{group.rows}x{group.columns}",
            "phrasing": group.phrasing,
            "example": group.prompts[0],
            "guidance": scale,
            "cells": len(digits),
            "accuracy": reader.accuracy(digits, group.labels.reshape(-1)),
          }
        )
        progress.show(len(table))
      if singles:
        memory[str(scale)] = neighbors.compare(np.concatenate(singles))
  return table, memory


def loss_by_time(
  config: RunConfig, pipe: LuminaPipeline, digits: Split
) -> list[float]:
  """Flow loss on canvases of digits never trained on, by time bin."""
  network = pipe.network
  source = DigitCanvases(
    config.data, digits, config.model.grid, network.tokenize, seed=1
  )
  batches = Batches(
    source, config.data.budget, config.training.batch_rows, seed=1
  )
  times = TimeDistribution("uniform")

  @jax.jit
  def losses(params, batch, key):
    with nn.logical_axis_rules(RULES):
      return flow_loss(network, params, batch, times, jax.random.key(key))

  total, count = np.zeros(TIME_BINS), np.zeros(TIME_BINS)
  for i in range(LOSS_BATCHES):
    with pipe.devices():
      batch = _divisible(batches.batch(i), divisors()[0])
      flow = losses(pipe.params, batch, i)
    loss, exists, t = processes.gather(flow[:3])
    bins = np.minimum((t * TIME_BINS).astype(int), TIME_BINS - 1)[exists]
    np.add.at(total, bins, loss[exists])
    np.add.at(count, bins, 1)
  return [float(x) for x in total / np.maximum(count, 1)]


def _divisible(batch: Any, by: int) -> Any:
  """A batch with empty rows, so that devices can share it out."""
  return jax.tree.map(
    lambda x: np.pad(x, [(0, -len(x) % by), *[(0, 0)] * (x.ndim - 1)]), batch
  )


def evaluate(
  config: RunConfig,
  pipe: LuminaPipeline,
  cells: int,
  guidance: Sequence[float] = GUIDANCE,
) -> dict[str, Any]:
  """All figures of a network as plain values."""
  known, held_out = split(config.data.held_out)
  neighbors = NearestNeighbors(known)
  trained = list(config.data.canvases)
  canvases = trained + [c for c in EXTRAPOLATED if c not in trained]
  reader = DigitClassifier(known)
  table, memory = prompt_accuracy(
    pipe,
    reader,
    neighbors,
    list(prompt_groups(canvases, cells, seed=0)),
    guidance,
  )
  names = {f"{rows}x{columns}" for rows, columns in trained}
  for row in table:
    row["trained"] = row["canvas"] in names
  return {
    "reader_accuracy_held_out": reader.accuracy(
      held_out.images, held_out.labels
    ),
    "accuracy": table,
    "memorisation": memory,
    "held_out_digits": neighbors.compare(held_out.images),
    "held_out_loss_by_time": loss_by_time(config, pipe, held_out),
  }


def show(result: dict[str, Any]) -> None:
  """Prints the figures as tables."""
  console = Console()
  guidance = sorted({row["guidance"] for row in result["accuracy"]})
  by_cell = {
    (row["canvas"], row["phrasing"], row["guidance"]): row
    for row in result["accuracy"]
  }
  table = Table(
    "canvas", "prompts like", "cells", title="prompt accuracy per digit"
  )
  for scale in guidance:
    table.add_column(f"guidance {scale:g}", justify="right")
  for canvas, phrasing in dict.fromkeys(key[:2] for key in by_cell):
    rows = [by_cell[canvas, phrasing, scale] for scale in guidance]
    name = canvas if rows[0]["trained"] else f"{canvas} unseen"
    accuracies = [f"{row['accuracy']:.3f}" for row in rows]
    table.add_row(name, rows[0]["example"], str(rows[0]["cells"]), *accuracies)
  console.print(table)
  table = Table(
    "digits", "distance", "near-duplicates", title="nearest training digit"
  )
  judged = {"real, held out": result["held_out_digits"]} | {
    f"generated, guidance {scale}": values
    for scale, values in result["memorisation"].items()
  }
  for name, values in judged.items():
    table.add_row(
      name, f"{values['distance']:.3f}", f"{values['near_duplicates']:.3f}"
    )
  console.print(table)
  bins = "  ".join(f"{x:.3f}" for x in result["held_out_loss_by_time"])
  print(f"held-out flow loss by time, 0 to 1 in {TIME_BINS} bins:\n  {bins}")
  print(
    "the classifier reads held-out real digits with accuracy "
    f"{result['reader_accuracy_held_out']:.3f}"
  )


def write(result: dict[str, Any], folder: epath.Path) -> None:
  """Writes the figures into a workdir, and its report anew."""
  text = json.dumps(result, indent=2) + "\n"
  atomic.write_text(folder / FILE, text)
  report.write(folder)


@processes.one_voice()
def main(_) -> None:
  processes.end_on_sigterm()  # Files are whole or not there.
  args = flags.FLAGS
  config = run_config.load(args.workdir)
  if not isinstance(config.data, DigitsConfig):
    raise ValueError(
      f"{args.workdir} was not trained on digits, and evaluate reads digits "
      "only; look at the run's report.html and samples instead"
    )
  step, pipe = workdirs.load_step(args.workdir)
  result = {"step": step} | evaluate(config, pipe, args.cells)
  show(result)
  folder = epath.Path(args.workdir)
  processes.on_first(lambda: write(result, folder))
  print(f"\nwritten: {folder / FILE} and report.html beside it")


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_string("workdir", None, "Folder of the run to judge.")
  flags.DEFINE_integer(
    "cells", 500, "Digits per canvas size and phrasing.", lower_bound=1
  )
  flags.mark_flags_as_required(["workdir"])
  entry_point.run(main)


if __name__ == "__main__":
  run()
