"""Solvers and time grids, compared on digits: python -m benchmarks.solvers

Generates trained canvases with the shipped weights, by every solver and time
grid at about 5, 10, 20 and 40 evaluations of the velocity, and compares the
latents with those of rk4 in 500 steps from the same noise. The best of each
budget are then measured on other prompts and noise, where a classifier also
reads the digits. Prints tables and writes docs/solvers.json.

The rational grid of Lumina-Next (section 2.3) is the shift of the uniform one.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from data_pipelines.digits import split
from lumina_jax.commands import start as entry_point
from lumina_jax.evaluation.digits import (
  PHRASINGS,
  DigitClassifier,
  split_canvases,
)
from lumina_jax.flow import schedule as schedules
from lumina_jax.flow.solvers import get_solver
from lumina_jax.media.image import to_uint8
from lumina_jax.pipeline import LuminaPipeline

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "solvers.json"
SOLVERS = (
  "euler", "midpoint", "heun", "heun3", "rk4", "rk4_38", "ab2", "dpm2m",
)  # fmt: skip
BUDGETS = (5, 10, 20, 40)
# Without guidance, which compiles other programs.
UNGUIDED_BUDGETS = (10, 20)
GUIDANCE = 2.0
SHIFTS = (0.5, 1.5, 2.0, 3.0, 4.0)
# (center, early, late); the first is the default.
SIGMOIDS = ((0.6, 6, 20), (0.6, 3, 6), (0.5, 6, 6), (0.5, 3, 3))
DENSE, LESS_DENSE = 500, 64  # Steps of rk4.
RTOLS = (1e-1, 1e-2, 1e-3)
FINALISTS = 6  # Pairs of solver and grid at each budget.
# Largest first, so that they fill the rows of a batch.
CANVASES = ((2, 2), (3, 1), (1, 3), (2, 1), (1, 2), (1, 1))
FEW = (3, 3, 3, 6, 6, 24)  # One full batch of the shipped ladder.
MANY = (25, 33, 33, 50, 50, 100)


class Result(NamedTuple):
  """Latents of each canvas, and the number of evaluations."""

  latents: list[np.ndarray]
  evaluations: int


class Task:
  """Prompts and seeds of canvases, and their digits."""

  def __init__(self, counts: Sequence[int], seed: int):
    """Chooses random labels.

    Args:
      counts: number of each of `CANVASES`.
      seed: seed of the labels, and the first seed of the noise.
    """
    rng = np.random.default_rng(seed)
    self.labels = [
      rng.integers(10, size=canvas)
      for canvas, count in zip(CANVASES, counts, strict=True)
      for _ in range(count)
    ]
    self.prompts = [PHRASINGS["figures"](labels) for labels in self.labels]
    self.seeds = [seed + n for n in range(len(self.labels))]
    self.cells = sum(labels.size for labels in self.labels)

  def generate(
    self,
    pipe: LuminaPipeline,
    solver: str,
    times: Sequence[float],
    guidance: float,
    **options: Any,
  ) -> Result:
    """Generates all canvases along these times."""
    out = pipe(
      self.prompts,
      seed=self.seeds,
      solver=solver,
      schedule=times,
      guidance_scale=guidance,
      output_type="latent",
      **options,
    )
    return Result(out.images, out.evaluations[0])

  def accuracy(self, classifier: DigitClassifier, result: Result) -> float:
    """Share of digits that the classifier reads as their label."""
    cells = [
      split_canvases([to_uint8(image)], *labels.shape)
      for image, labels in zip(result.latents, self.labels, strict=True)
    ]
    labels = np.concatenate([labels.ravel() for labels in self.labels])
    return classifier.accuracy(np.concatenate(cells), labels)


def error(result: Result, reference: Result) -> dict[str, float]:
  """The difference of canvases from a reference.

  Returns:
    rms: root mean square difference of all pixels.
    noise: standard error of `rms`.
    median: median over canvases of the root mean square difference of each. A
      few canvases that become other digits dominate `rms`, but not this one.
  """
  pairs = zip(result.latents, reference.latents, strict=True)
  squares = [((a - b) ** 2).ravel() for a, b in pairs]
  sizes = np.array([x.size for x in squares])
  means = np.array([x.mean() for x in squares])
  mean = np.average(means, weights=sizes)
  # Errors of pixels of one canvas are correlated.
  spread = np.sqrt(np.sum((sizes * (means - mean)) ** 2)) / sizes.sum()
  root = np.sqrt(mean)
  return dict(
    rms=float(root),
    noise=float(spread / (2 * max(root, 1e-12))),
    median=float(np.median(np.sqrt(means))),
  )


def grids(steps: int) -> Iterator[tuple[str, list[float]]]:
  """Time grids by name."""
  uniform = np.linspace(0, 1, steps + 1)
  yield "uniform", uniform.tolist()
  for factor in SHIFTS:
    times = np.asarray(schedules.shift(uniform, factor))
    yield f"shift {factor:g}", [0.0, *times[1:-1].tolist(), 1.0]
  for numbers in SIGMOIDS:
    times = np.asarray(schedules.sigmoid(steps, *numbers))
    name = " ".join(f"{x:g}" for x in numbers)
    yield f"sigmoid {name}", [0.0, *times[1:-1].tolist(), 1.0]


def steps_within(solver: str, budget: int) -> int:
  """The number of steps that these evaluations allow, at least one."""
  return max(1, budget // get_solver(solver).evaluations)


def uniform(steps: int) -> list[float]:
  return np.linspace(0, 1, steps + 1).tolist()


def errors(
  pipe: LuminaPipeline, guidance: float, budgets: Sequence[int]
) -> list[dict[str, Any]]:
  """Errors of every solver and grid at every budget."""
  task, rows = Task(FEW, seed=1000), []
  reference = task.generate(pipe, "rk4", uniform(DENSE), guidance)

  def add(solver, grid, times, **options):
    result = task.generate(pipe, solver, times, guidance, **options)
    row = dict(guidance=guidance, solver=solver, grid=grid)
    row |= dict(evaluations=result.evaluations)
    rows.append(row | error(result, reference))

  add("rk4", "uniform", uniform(LESS_DENSE))
  for rtol in RTOLS:
    add("dopri5", f"rtol {rtol:g}", [0.0, 1.0], rtol=rtol, atol=rtol)
  for budget in budgets:
    for solver in SOLVERS:
      measured = set()
      for grid, times in grids(steps_within(solver, budget)):
        if tuple(times) not in measured:
          add(solver, grid, times)
          rows[-1]["budget"] = budget
        measured.add(tuple(times))
    print_errors(rows, guidance, budget)
  return rows


def finalists(rows: list[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
  """The pairs of least median error, and all solvers on the uniform grid."""
  rows = [row for row in rows if row.get("budget") == budget]
  best = sorted(rows, key=lambda row: row["median"])[:FINALISTS]
  return best + [r for r in rows if r["grid"] == "uniform" and r not in best]


def finals(
  pipe: LuminaPipeline, errors: list[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Error and prompt accuracy of the best, on other prompts and noise."""
  task, rows = Task(MANY, seed=5000), []
  classifier = DigitClassifier(split(0.2)[0])
  reference = task.generate(pipe, "rk4", uniform(LESS_DENSE), GUIDANCE)

  def add(result, solver, grid, budget):
    row = dict(budget=budget, solver=solver, grid=grid)
    row |= dict(evaluations=result.evaluations) | error(result, reference)
    accuracy = task.accuracy(classifier, result)
    rows.append(row | dict(accuracy=accuracy, cells=task.cells))

  add(reference, "rk4", "uniform", 0)
  for budget in BUDGETS[:3]:
    for row in finalists(errors, budget):
      solver, grid = row["solver"], row["grid"]
      times = dict(grids(steps_within(solver, budget)))[grid]
      result = task.generate(pipe, solver, times, GUIDANCE)
      add(result, solver, grid, budget)
    result = task.generate(pipe, "sde_euler", uniform(budget), GUIDANCE)
    add(result, "sde_euler", "uniform", budget)
    print_finals(rows, budget)
  return rows


def print_errors(
  rows: list[dict[str, Any]], guidance: float, budget: int
) -> None:
  rows = [row for row in rows if row.get("budget") == budget]
  by_name = {(row["solver"], row["grid"]): row for row in rows}
  names = list(dict.fromkeys(row["grid"] for row in rows))
  for measure in ("median", "rms"):
    table = Table("solver", "evaluations", *names, box=box.MARKDOWN)
    table.title = f"{measure} error, guidance {guidance:g}, budget {budget}"
    for solver in SOLVERS:
      # Grids of one step are all the same.
      cells = [by_name.get((solver, grid)) for grid in names]
      values = [f"{row[measure]:.4f}" if row else "" for row in cells]
      table.add_row(solver, str(cells[0]["evaluations"]), *values)
    Console(width=200).print(table)


def print_finals(rows: list[dict[str, Any]], budget: int) -> None:
  names = "solver", "grid", "evaluations", "median", "rms", "±", "accuracy"
  table = Table(*names, box=box.MARKDOWN)
  table.title = f"{rows[0]['cells']} digits, {budget} evaluations"
  for row in rows:
    if row["budget"] in (0, budget):
      numbers = [f"{row[name]:.4f}" for name in ("median", "rms", "noise")]
      numbers.append(f"{row['accuracy']:.3f}")
      table.add_row(
        row["solver"], row["grid"], str(row["evaluations"]), *numbers
      )
  Console(width=200).print(table)


def save(results: dict[str, Any]) -> None:
  """Writes one row per line, so that diffs are readable."""
  lists = []
  for name, rows in results.items():
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    lists.append(f'  "{name}": [\n{lines}\n  ]')
  RESULTS.write_text("{\n" + ",\n".join(lists) + "\n}\n")


def main(_) -> None:
  pipe = LuminaPipeline.from_pretrained()
  results = {"guided": errors(pipe, GUIDANCE, BUDGETS)}
  save(results)
  results["finals"] = finals(pipe, results["guided"])
  save(results)
  results["unguided"] = errors(pipe, 1.0, UNGUIDED_BUDGETS)
  save(results)


if __name__ == "__main__":
  entry_point.run(main)
