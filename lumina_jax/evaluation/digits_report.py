"""All figures of a run on digits, and their tables."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.batches import Batches
from data_pipelines.digit_captions import SIDE
from data_pipelines.digits import DigitCanvases, DigitsConfig, Split, split
from lumina_jax.evaluation.digits import (
  DigitClassifier,
  NearestNeighbors,
  PromptGroup,
  prompt_groups,
  split_canvases,
)
from lumina_jax.evaluation.held_out_loss import loss_by_time
from lumina_jax.files.progress import Progress
from lumina_jax.runs.tables import Table, by_time
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.generate import generate
from lumina_jax.training.run_config import RunConfig

GUIDANCE = (1.0, 1.5, 2.0)
EXTRAPOLATED = ((1, 4), (1, 5), (4, 1), (3, 3))  # Rows, columns.
LOSS_BATCHES = 16


def evaluate(
  config: RunConfig,
  components: Components,
  cells: int,
  guidance: Sequence[float] = GUIDANCE,
) -> dict[str, Any]:
  """Evaluates a network trained on digits.

  Args:
    config: config of the run.
    components: its components.
    cells: minimum number of digits for each canvas size and phrasing.
    guidance: guidance scales to sample with.

  Returns:
    Prompt accuracy, memorisation, and held-out loss by time as plain values;
    "tables" holds them as `Table`s.
  """
  training, held_out = split(config.data.held_out)
  trained = list(config.data.canvases)
  canvases = trained + [c for c in EXTRAPOLATED if c not in trained]
  classifier, neighbors = DigitClassifier(training), NearestNeighbors(training)
  accuracy, memorisation = _evaluate_prompts(
    components,
    classifier,
    neighbors,
    list(prompt_groups(canvases, cells, seed=0)),
    guidance,
  )
  names = {f"{rows}x{columns}" for rows, columns in trained}
  for row in accuracy:
    row["trained"] = row["canvas"] in names
  result = {
    "classifier_accuracy_held_out": classifier.accuracy(
      held_out.images, held_out.labels
    ),
    "accuracy": accuracy,
    "memorisation": memorisation,
    "held_out_digits": neighbors.compare(held_out.images),
    "held_out_loss_by_time": loss_by_time(
      components, _held_out_batches(config, held_out), LOSS_BATCHES
    ),
  }
  return result | {"tables": [dataclasses.asdict(t) for t in tables(result)]}


def check(config: RunConfig) -> None:
  """Checks that a run was trained on digits.

  Raises:
    ValueError: if it was not.
  """
  if not isinstance(config.data, DigitsConfig):
    raise ValueError(
      "the run was not trained on digits, and evaluate supports digits only; "
      "see its report.html and samples instead"
    )


def _evaluate_prompts(
  components: Components,
  classifier: DigitClassifier,
  neighbors: NearestNeighbors,
  prompts: Sequence[PromptGroup],
  guidance: Sequence[float],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Accuracy by canvas, phrasing and guidance; memorisation by guidance."""
  accuracy, memorisation = [], {}
  total = len(prompts) * len(guidance)
  with Progress("evaluating", total, unit="groups") as progress:
    for scale in guidance:
      singles = []
      for group in prompts:
        canvases = generate(
          components,
          group.prompts,
          guidance_scale=scale,
          seed=list(range(len(group.labels))),
          height=SIDE * group.rows,
          width=SIDE * group.columns,
          output_type="uint8",
        ).samples
        digits = split_canvases(canvases, group.rows, group.columns)
        if group.rows == group.columns == 1:
          singles.append(digits)
        accuracy.append(
          {
            "canvas": f"{group.rows}x{group.columns}",
            "phrasing": group.phrasing,
            "example": group.prompts[0],
            "guidance": scale,
            "cells": len(digits),
            "accuracy": classifier.accuracy(digits, group.labels.reshape(-1)),
          }
        )
        progress.show(len(accuracy))
      if singles:
        memorisation[str(scale)] = neighbors.compare(np.concatenate(singles))
  return accuracy, memorisation


def _held_out_batches(config: RunConfig, digits: Split) -> Batches:
  """Batches of canvases of digits that the network was not trained on."""
  source = DigitCanvases(
    config.data, digits, config.model.grid, config.network.tokenize, seed=1
  )
  return Batches(source, config.data.budget, config.training.batch_rows, seed=1)


def tables(result: dict[str, Any]) -> list[Table]:
  """Tables of the figures of `evaluate`."""
  real = ("real, held out", f"{result['classifier_accuracy_held_out']:.3f}")
  return [
    _accuracy_table(result["accuracy"]),
    _memorisation_table(result["held_out_digits"], result["memorisation"]),
    by_time("Held-out flow loss by time", result["held_out_loss_by_time"]),
    Table("Classifier", ("digits", "accuracy"), (real,)),
  ]


def _accuracy_table(accuracy: Sequence[dict[str, Any]]) -> Table:
  """A row for each canvas and phrasing, a column for each guidance scale."""
  guidance = sorted({row["guidance"] for row in accuracy})
  cells: dict[tuple[str, str], dict[float, dict[str, Any]]] = {}
  for row in accuracy:
    key = row["canvas"], row["phrasing"]
    cells.setdefault(key, {})[row["guidance"]] = row
  rows = []
  for (canvas, _), by_scale in cells.items():
    first = by_scale[guidance[0]]
    name = canvas if first["trained"] else f"{canvas} unseen"
    shares = (f"{by_scale[scale]['accuracy']:.3f}" for scale in guidance)
    rows.append((name, first["example"], str(first["cells"]), *shares))
  scales = (f"guidance {scale:g}" for scale in guidance)
  columns = "canvas", "prompts like", "digits", *scales
  return Table("Prompt accuracy per digit", columns, tuple(rows))


def _memorisation_table(
  held_out: dict[str, float], generated: dict[str, dict[str, float]]
) -> Table:
  figures = {"real, held out": held_out} | {
    f"generated, guidance {scale}": values
    for scale, values in generated.items()
  }
  rows = tuple(
    (name, f"{x['distance']:.3f}", f"{x['near_duplicates']:.3f}")
    for name, x in figures.items()
  )
  columns = "digits", "distance", "near-duplicates"
  return Table("Distance to the nearest training digit", columns, rows)
