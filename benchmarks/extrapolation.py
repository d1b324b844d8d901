"""Rules for positions, compared on digits: python -m benchmarks.extrapolation

Two kinds of canvases that the shipped weights were not trained on:

- resolution: trained canvases at 1.5 and 2 times their size; a classifier reads
  them after pixels are averaged to the trained size;
- layout: more digits in a row, a column or a square than in training; positions
  are stretched from the nearest trained canvas.

All rules use the same prompts and noise. Prints tables and writes
docs/extrapolation.json.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from data_pipelines.digit_captions import SIDE
from data_pipelines.digits import split
from lumina_jax.backbone.rope import RULES
from lumina_jax.commands import start as entry_point
from lumina_jax.evaluation.digits import (
  PHRASINGS,
  DigitClassifier,
  split_canvases,
)
from lumina_jax.media.image import to_uint8
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling import call
from lumina_jax.sampling.prompts import prompt_encoder
from lumina_jax.sampling.request import Request, make_requests
from lumina_jax.sampling.run import run
from lumina_jax.sampling.times import time_grid

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "extrapolation.json"
OPTIONS = dict(solver="midpoint", num_inference_steps=8)
GUIDANCE = 2.0
OTHER_GUIDANCE = (1.0, 3.0)  # Of the best rule and of "none".
Canvas = tuple[int, int]
Setting = tuple[str, bool]  # A rule, and whether attention is proportional.
Row = dict[str, Any]  # Of a table.
# (rows, columns) of digits: number of canvases, largest first.
SAME = {(2, 2): 30, (1, 2): 50, (1, 1): 80}
LARGER = {(3, 3): 34, (1, 5): 60, (4, 1): 75, (1, 4): 75}
NEAREST = {(3, 3): (2, 2), (1, 5): (1, 3), (4, 1): (3, 1), (1, 4): (1, 3)}


class Canvases(NamedTuple):
  """Canvases to generate.

  Attributes:
    labels: digits `i64[rows, columns]` of each.
    requests: requests of the pipeline.
  """

  labels: list[np.ndarray]
  requests: list[Request]


def make_canvases(
  pipe: LuminaPipeline,
  counts: dict[Canvas, int],
  factor: float = 1.0,
  guidance: float = GUIDANCE,
) -> Canvases:
  """Canvases of random digits at a multiple of their trained size."""
  rng = np.random.default_rng(0)
  labels = [
    rng.integers(10, size=canvas)
    for canvas, count in counts.items()
    for _ in range(count)
  ]
  components = pipe.components
  parsed = call.parse(
    components.medium,
    dict(
      height=[round(factor * SIDE * x.shape[0]) for x in labels],
      width=[round(factor * SIDE * x.shape[1]) for x in labels],
      guidance_scale=guidance,
      seed=list(range(len(labels))),
    ),
  )
  prompts = [PHRASINGS["figures"](x) for x in labels]
  encoder = prompt_encoder(components, parsed.call)
  requests = make_requests(
    components, parsed, components.options, prompts, encoder
  )
  return Canvases(labels, requests)


def from_nearest(pipe: LuminaPipeline, canvases: Canvases) -> Canvases:
  """The same canvases, stretched from the nearest trained ones."""

  def natural(labels):
    rows, columns = NEAREST[labels.shape]
    return pipe.network.model.grid(rows * SIDE, columns * SIDE)

  requests = [
    dataclasses.replace(request, natural=natural(labels))
    for request, labels in zip(canvases.requests, canvases.labels, strict=True)
  ]
  return canvases._replace(requests=requests)


def generate(
  pipe: LuminaPipeline, canvases: Canvases, setting: Setting
) -> list[np.ndarray]:
  """Latents of the canvases."""
  rule, proportional = setting
  options = dataclasses.replace(
    pipe.options,
    rope_scaling=rule,
    proportional_attention=proportional,
    **OPTIONS,
  )
  times = time_grid(options)
  results = run(
    pipe.components, canvases.requests, options, times, decode=False
  )
  return [result.sample for result in results]


def average(image: np.ndarray, canvas: Canvas) -> np.ndarray:
  """Averages pixels `f32[H, W, 1]` to the trained size of a canvas."""
  rows, columns = canvas
  size = columns * SIDE, rows * SIDE
  clipped = Image.fromarray(np.clip(image[..., 0], -1, 1).astype(np.float32))
  return np.asarray(clipped.resize(size, Image.Resampling.BOX))[..., None]


def correct(
  classifier: DigitClassifier, canvases: Canvases, images: list[np.ndarray]
) -> np.ndarray:
  """The number of correctly classified digits of each canvas, `f64[N]`."""

  def one(image, labels):
    pixels = to_uint8(average(image, labels.shape))
    digits = split_canvases([pixels], *labels.shape)
    return classifier.accuracy(digits, labels.ravel()) * labels.size

  pairs = zip(images, canvases.labels, strict=True)
  return np.array([one(image, labels) for image, labels in pairs])


def estimate(hits: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
  """The share of hits in all cells, and its standard error over canvases."""
  share = hits.sum() / cells.sum()
  residuals = hits - share * cells
  return float(share), float(np.sqrt(np.sum(residuals**2)) / cells.sum())


def make_rows(
  canvases: Canvases, hits: np.ndarray, baseline: np.ndarray, **fields: Any
) -> Iterator[Row]:
  """Accuracy on all canvases and on each kind, and its gain over a baseline.

  Args:
    canvases: the canvases.
    hits: correct digits of each, `f64[N]`.
    baseline: correct digits without a rule, `f64[N]`.
    **fields: other fields of the rows.
  """
  shapes = [labels.shape for labels in canvases.labels]
  cells = np.array([labels.size for labels in canvases.labels], float)
  for canvas in [None, *dict.fromkeys(shapes)]:
    mask = np.array([canvas in (None, shape) for shape in shapes])
    share, noise = estimate(hits[mask], cells[mask])
    gain, gain_noise = estimate(hits[mask] - baseline[mask], cells[mask])
    yield fields | dict(
      canvas="all" if canvas is None else f"{canvas[0]}x{canvas[1]}",
      cells=int(cells[mask].sum()),
      accuracy=share,
      noise=noise,
      gain=gain,
      gain_noise=gain_noise,
    )


def compare(
  pipe: LuminaPipeline,
  classifier: DigitClassifier,
  canvases: Canvases,
  settings: Sequence[Setting],
  **fields: Any,
) -> list[Row]:
  """Rows of every setting; the first, without a rule, is the baseline."""
  rows, baseline = [], None
  for setting in settings:
    images = generate(pipe, canvases, setting)
    hits = correct(classifier, canvases, images)
    baseline = hits if baseline is None else baseline
    rule, proportional = setting
    rows += make_rows(
      canvases, hits, baseline, rule=rule, proportional=proportional, **fields
    )
  return rows


def all_settings() -> list[Setting]:
  names = ["none", *(rule for rule in RULES if rule != "none")]
  return [
    (rule, proportional) for rule in names for proportional in (False, True)
  ]


def best(rows: list[Row]) -> Setting:
  """The most accurate setting."""
  rows = [row for row in rows if row["canvas"] == "all"]
  top = max(rows, key=lambda row: row["accuracy"])
  return top["rule"], top["proportional"]


def show(rows: list[Row], title: str) -> None:
  """Prints a table with a line for each setting."""
  names = list(dict.fromkeys(row["canvas"] for row in rows))[1:]
  table = Table("rule", "proportional", *names, "all", "gain", title=title)
  table.box = box.MARKDOWN
  settings = dict.fromkeys((row["rule"], row["proportional"]) for row in rows)
  for rule, proportional in settings:
    by_canvas = {
      row["canvas"]: row
      for row in rows
      if (row["rule"], row["proportional"]) == (rule, proportional)
    }
    cells = [f"{by_canvas[name]['accuracy']:.3f}" for name in [*names, "all"]]
    total = by_canvas["all"]
    gain = f"{total['gain']:+.3f} ± {total['gain_noise']:.3f}"
    table.add_row(rule, "yes" if proportional else "no", *cells, gain)
  Console(width=120).print(table)


def resolution(
  pipe: LuminaPipeline, classifier: DigitClassifier, factor: float
) -> list[Row]:
  """All settings at a size; the best also at other scales of guidance."""
  title = f"{factor:g} times the trained size, guidance"
  fields = dict(table="resolution", factor=factor)

  def measure(settings, guidance):
    canvases = make_canvases(pipe, SAME, factor, guidance)
    rows = compare(
      pipe, classifier, canvases, settings, guidance=guidance, **fields
    )
    show(rows, f"{title} {guidance:g}")
    return rows

  rows = measure(all_settings(), GUIDANCE)
  settings = [("none", False), best(rows)]
  return rows + [row for g in OTHER_GUIDANCE for row in measure(settings, g)]


def layout(pipe: LuminaPipeline, classifier: DigitClassifier) -> list[Row]:
  """All settings on canvases of more digits than in training."""
  canvases = from_nearest(pipe, make_canvases(pipe, LARGER))
  fields = dict(table="layout", factor=1.0, guidance=GUIDANCE)
  rows = compare(pipe, classifier, canvases, all_settings(), **fields)
  show(rows, f"larger canvases, guidance {GUIDANCE:g}")
  return rows


def mistakes(pipe: LuminaPipeline, classifier: DigitClassifier) -> list[Row]:
  """What wrong canvases show instead, read at the trained size of a digit.

  Each quarter of a single digit at twice its size is compared with that digit;
  each line of 4x1 with its own digit and with the first one.
  """
  rows: list[Row] = []
  canvases = make_canvases(pipe, {(1, 1): 80}, 2.0)
  labels = np.concatenate([x.ravel() for x in canvases.labels])
  for rule in ("none", "linear", "ntk", "watershed"):
    images = [to_uint8(x) for x in generate(pipe, canvases, (rule, False))]
    quarters = split_canvases(images, 2, 2)
    accuracy = classifier.accuracy(quarters, np.repeat(labels, 4))
    rows.append(dict(table="quarters", rule=rule, accuracy=accuracy))
  canvases = make_canvases(pipe, {(4, 1): 100})
  images = [to_uint8(x) for x in generate(pipe, canvases, ("none", False))]
  lines = split_canvases(images, 4, 1).reshape(-1, 4, SIDE, SIDE)
  labels = np.stack([x.ravel() for x in canvases.labels])
  for line in range(4):
    own, first = (
      classifier.accuracy(lines[:, line], labels[:, other])
      for other in (line, 0)
    )
    rows.append(dict(table="lines", line=line + 1, own=own, first=first))
  for row in rows:
    print(row)
  return rows


def save(rows: list[Row]) -> None:
  """Writes one row per line, so that diffs are readable."""
  lines = ",\n".join(json.dumps(row) for row in rows)
  RESULTS.write_text(f"[\n{lines}\n]\n")


def main(_) -> None:
  pipe = LuminaPipeline.from_pretrained()
  classifier, rows = DigitClassifier(split(0.2)[0]), []
  for measure in (
    lambda: resolution(pipe, classifier, 2.0),
    lambda: mistakes(pipe, classifier),
    lambda: layout(pipe, classifier),
    lambda: resolution(pipe, classifier, 1.5),
  ):
    rows += measure()
    save(rows)


if __name__ == "__main__":
  entry_point.run(main)
