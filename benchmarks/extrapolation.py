"""Rules for positions, compared on digits: python -m benchmarks.extrapolation

Two ways of drawing what was never trained, with the shipped weights:

- resolution: the same canvases at 1.5 and 2 times their trained size; pixels
  are averaged down to the trained size again before a classifier reads them;
- layout: more digits in a row, a column or a square than ever in training,
  with positions as they are or stretched as from the nearest trained canvas.

Every rule draws the same prompts from the same noise. Prints the tables and
writes docs/extrapolation.json.
"""

from __future__ import annotations

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
from lumina_jax.evaluation.digits import DigitClassifier, split_canvases
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling import output
from lumina_jax.sampling import run as drawing
from lumina_jax.sampling import times as time_grid
from lumina_jax.sampling.batch import Picture
from lumina_jax.sampling.extrapolation import Extrapolation

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "extrapolation.json"
HOW = dict(solver="midpoint", num_inference_steps=8)
GUIDANCE = 2.0
OTHER_GUIDANCE = (1.0, 3.0)  # For the best rule and for none.
Canvas = tuple[int, int]
# Rows and columns of digits: how many canvases of each, largest first.
SAME = {(2, 2): 30, (1, 2): 50, (1, 1): 80}
LARGER = {(3, 3): 34, (1, 5): 60, (4, 1): 75, (1, 4): 75}
NEAREST = {(3, 3): (2, 2), (1, 5): (1, 3), (4, 1): (3, 1), (1, 4): (1, 3)}


class Asked(NamedTuple):
  """Canvases to draw.

  Attributes:
    labels: `i64[rows, columns]` of each.
    pictures: what the pipeline makes of them.
    factor: of their size.
  """

  labels: list[np.ndarray]
  pictures: list[Picture]
  factor: float


def ask(
  pipe: LuminaPipeline,
  counts: dict[Canvas, int],
  factor: float = 1.0,
  guidance: float = GUIDANCE,
) -> Asked:
  """Random labels on these canvases, drawn at so many times their size."""
  rng = np.random.default_rng(0)
  labels = [
    rng.integers(10, size=canvas)
    for canvas, count in counts.items()
    for _ in range(count)
  ]
  pictures = pipe.pictures(
    [" / ".join(" ".join(map(str, row)) for row in x) for x in labels],
    height=[round(factor * SIDE * x.shape[0]) for x in labels],
    width=[round(factor * SIDE * x.shape[1]) for x in labels],
    guidance_scale=guidance,
    start=inputs.Start(seed=list(range(len(labels)))),
  )
  return Asked(labels, pictures, factor)


def from_nearest(pipe: LuminaPipeline, asked: Asked) -> Asked:
  """The same, stretched as from the nearest trained canvas."""

  def natural(labels):
    rows, columns = NEAREST[labels.shape]
    return pipe.network.model.grid(rows * SIDE, columns * SIDE)

  pictures = [
    dataclasses.replace(picture, natural=natural(labels))
    for picture, labels in zip(asked.pictures, asked.labels, strict=True)
  ]
  return asked._replace(pictures=pictures)


def draw(
  pipe: LuminaPipeline, asked: Asked, rule: str, proportional: bool
) -> list[np.ndarray]:
  """Latents of the canvases, with positions by a rule."""
  beyond = Extrapolation(
    rule=rule, side=0, base_tokens=0, proportional=proportional
  )
  sampling = dataclasses.replace(pipe.sampling, beyond=beyond, **HOW)
  times = time_grid.choose(sampling)
  drawn = drawing.images(
    pipe, asked.pictures, sampling, times, None, None, decode=False
  )
  return [one.image for one in drawn]


def averaged(image: np.ndarray, canvas: Canvas) -> np.ndarray:
  """Pixels `f32[H, W, 1]` of any size, averaged to the trained size."""
  rows, columns = canvas
  size = columns * SIDE, rows * SIDE
  shown = Image.fromarray(np.clip(image[..., 0], -1, 1).astype(np.float32))
  return np.asarray(shown.resize(size, Image.Resampling.BOX))[..., None]


def right(
  reader: DigitClassifier, asked: Asked, images: list[np.ndarray]
) -> np.ndarray:
  """`f64[N]`, how many digits of each canvas are read as asked."""

  def one(image, labels):
    pixels = output.to_uint8(averaged(image, labels.shape))
    share = reader.accuracy(
      split_canvases([pixels], *labels.shape), labels.ravel()
    )
    return share * labels.size

  pairs = zip(images, asked.labels, strict=True)
  return np.array([one(image, labels) for image, labels in pairs])


def estimate(hits: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
  """A share of all cells, and its standard error between canvases."""
  share = hits.sum() / cells.sum()
  off = hits - share * cells
  return float(share), float(np.sqrt(np.sum(off**2)) / cells.sum())


def rows_of(
  asked: Asked, hits: np.ndarray, plain: np.ndarray, **what: Any
) -> Iterator[dict[str, Any]]:
  """Figures of each canvas and of all; plain are the hits without a rule."""
  shapes = [labels.shape for labels in asked.labels]
  cells = np.array([labels.size for labels in asked.labels], float)
  for canvas in [None, *dict.fromkeys(shapes)]:
    of = np.array([canvas in (None, shape) for shape in shapes])
    share, noise = estimate(hits[of], cells[of])
    gain, unsure = estimate(hits[of] - plain[of], cells[of])
    yield what | dict(
      canvas="all" if canvas is None else f"{canvas[0]}x{canvas[1]}",
      cells=int(cells[of].sum()),
      accuracy=share,
      noise=noise,
      gain=gain,
      gain_noise=unsure,
    )


def compare(
  pipe: LuminaPipeline,
  reader: DigitClassifier,
  asked: Asked,
  lines: Sequence[tuple[str, bool]],
  **what: Any,
) -> list[dict[str, Any]]:
  """Draws by each (rule, proportional), the first being no rule at all."""
  found, plain = [], None
  for rule, proportional in lines:
    hits = right(reader, asked, draw(pipe, asked, rule, proportional))
    plain = hits if plain is None else plain
    named = dict(rule=rule, proportional=proportional) | what
    found += rows_of(asked, hits, plain, **named)
  return found


def every_line() -> list[tuple[str, bool]]:
  names = ["none", *(rule for rule in RULES if rule != "none")]
  return [(rule, on) for rule in names for on in (False, True)]


def best(found: list[dict[str, Any]]) -> tuple[str, bool]:
  """Rule and proportional of the most accurate line."""
  lines = [row for row in found if row["canvas"] == "all"]
  top = max(lines, key=lambda row: row["accuracy"])
  return top["rule"], top["proportional"]


def show(found: list[dict[str, Any]], title: str) -> None:
  """Prints a table, a line for each rule."""
  names = list(dict.fromkeys(row["canvas"] for row in found))[1:]
  table = Table("rule", "proportional", *names, "all", "gain", title=title)
  table.box = box.MARKDOWN
  for rule, on in dict.fromkeys((r["rule"], r["proportional"]) for r in found):
    by = {
      r["canvas"]: r
      for r in found
      if (r["rule"], r["proportional"]) == (rule, on)
    }
    cells = [f"{by[name]['accuracy']:.3f}" for name in [*names, "all"]]
    gain = f"{by['all']['gain']:+.3f} ± {by['all']['gain_noise']:.3f}"
    table.add_row(rule, "yes" if on else "no", *cells, gain)
  Console(width=120).print(table)


def resolution(
  pipe: LuminaPipeline, reader: DigitClassifier, factor: float
) -> list[dict[str, Any]]:
  """All rules at a size; the best also at other scales of guidance."""
  what = dict(table="resolution", factor=factor)
  asked = ask(pipe, SAME, factor)
  found = compare(pipe, reader, asked, every_line(), guidance=GUIDANCE, **what)
  show(found, f"{factor:g} times the trained size, guidance {GUIDANCE:g}")
  lines = [("none", False), best(found)]
  for scale in OTHER_GUIDANCE:
    asked = ask(pipe, SAME, factor, scale)
    more = compare(pipe, reader, asked, lines, guidance=scale, **what)
    show(more, f"{factor:g} times the trained size, guidance {scale:g}")
    found += more
  return found


def layout(
  pipe: LuminaPipeline, reader: DigitClassifier
) -> list[dict[str, Any]]:
  """All rules on canvases of more digits than in training."""
  asked = from_nearest(pipe, ask(pipe, LARGER))
  what = dict(table="layout", factor=1.0, guidance=GUIDANCE)
  found = compare(pipe, reader, asked, every_line(), **what)
  show(found, f"larger canvases, guidance {GUIDANCE:g}")
  return found


def parts(
  pipe: LuminaPipeline, reader: DigitClassifier
) -> list[dict[str, Any]]:
  """What wrong canvases show instead, digit by digit at the trained size.

  The quarters of a single digit at twice its size are read as that digit; each
  line of 4x1 is read as the first line and as its own.
  """
  found = []
  asked = ask(pipe, {(1, 1): 80}, 2.0)
  labels = np.concatenate([x.ravel() for x in asked.labels])
  for rule in ("none", "linear", "ntk", "watershed"):
    images = [output.to_uint8(x) for x in draw(pipe, asked, rule, False)]
    share = reader.accuracy(split_canvases(images, 2, 2), np.repeat(labels, 4))
    found.append(dict(table="quarters", rule=rule, accuracy=share))
  asked = ask(pipe, {(4, 1): 100})
  images = [output.to_uint8(x) for x in draw(pipe, asked, "none", False)]
  lines = split_canvases(images, 4, 1).reshape(-1, 4, SIDE, SIDE)
  wanted = np.stack([x.ravel() for x in asked.labels])
  for line in range(4):
    own, first = (
      reader.accuracy(lines[:, line], wanted[:, which]) for which in (line, 0)
    )
    found.append(dict(table="lines", line=line + 1, own=own, first=first))
  for row in found:
    print(row)
  return found


def save(found: list[dict[str, Any]]) -> None:
  """One line for each row, so that a change shows as such."""
  lines = ",\n".join(json.dumps(row) for row in found)
  RESULTS.write_text(f"[\n{lines}\n]\n")


def main(_) -> None:
  pipe = LuminaPipeline.from_pretrained()
  reader, found = DigitClassifier(split(0.2)[0]), []
  for part in (
    lambda: resolution(pipe, reader, 2.0),
    lambda: parts(pipe, reader),
    lambda: layout(pipe, reader),
    lambda: resolution(pipe, reader, 1.5),
  ):
    found += part()
    save(found)


if __name__ == "__main__":
  entry_point.run(main)
