"""The pictures of docs/sampling.md: python -m benchmarks.flow_pictures

With the weights that ship: docs/solvers.png, one canvas by several solvers and
numbers of evaluations; docs/twice.png, canvases at twice their trained size by
several rules for positions; docs/strengths.png, image to image. Names (solvers,
twice, strengths) as arguments make these only.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.digits import split
from lumina_jax.commands import start as entry_point
from lumina_jax.flow.solvers import get_solver
from lumina_jax.media import sheet as picture
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling.extrapolation import Extrapolation

DOCS = pathlib.Path(__file__).parents[1] / "docs"
MARGIN, FONT_SIZE = 8, 14
EVALUATIONS = (4, 8, 16, 32)
SOLVERS = (
  "euler", "midpoint", "heun", "heun3", "rk4", "rk4_38", "ab2", "dpm2m",
)  # fmt: skip
CANVAS, SEED = "3 1 4", 3
TWICE = ("7", "3 1 / 4 1", "2 8 / 5 9")
RULES = ("none", "linear", "ntk", "time_aware", "watershed")
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
SOURCE, WANTED, SEEDS = 3, "8", (0, 1, 2, 3)


def sheet(
  rows: Sequence[Sequence[Image.Image]],
  names: Sequence[str],
  heads: Sequence[str],
) -> Image.Image:
  """Pictures in rows and columns, the rows named on the left.

  Args:
    rows: pictures as large as they shall be.
    names: of the rows.
    heads: of the columns.
  """
  font = ImageFont.load_default(FONT_SIZE)
  left = math.ceil(max(map(font.getlength, names))) + 2 * MARGIN
  widths = [
    max(image.width for image in column)
    for column in zip(*(r for r in rows if len(r) == len(heads)), strict=True)
  ]
  widths = [
    max(width, math.ceil(font.getlength(head))) + MARGIN
    for width, head in zip(widths, heads, strict=True)
  ]
  heights = [max(image.height for image in row) + MARGIN for row in rows]
  top = FONT_SIZE + 2 * MARGIN
  out = Image.new("L", (left + sum(widths), top + sum(heights)), "white")
  draw = ImageDraw.Draw(out)
  starts = np.cumsum([left, *widths]).tolist()
  for at, head in zip(starts, heads, strict=False):
    draw.text((at, MARGIN // 2), head, fill="black", font=font)
  for row, name, height in zip(rows, names, heights, strict=True):
    middle = top + (height - MARGIN - FONT_SIZE) // 2 - 2
    draw.text((MARGIN, middle), name, fill="black", font=font)
    for at, image in zip(starts, row, strict=False):
      out.paste(image, (at, top))
    top += height
  return out


def enlarged(image: Image.Image, factor: int) -> Image.Image:
  return picture.enlarge(image.convert("L"), factor)


def by_solvers(pipe: LuminaPipeline) -> Image.Image:
  """One seed and prompt, by solvers and evaluations."""

  def drawn(solver: str, steps: int) -> Image.Image:
    how: dict[str, Any] = dict(solver=solver, num_inference_steps=steps)
    return enlarged(pipe(CANVAS, seed=SEED, **how).images[0], 6)

  rows = [
    [
      drawn(name, max(1, n // get_solver(name).evaluations))
      for n in EVALUATIONS
    ]
    for name in SOLVERS
  ]
  rows.append([drawn("rk4", 64)])
  names = [*SOLVERS, "rk4, 256"]
  return sheet(rows, names, [f"{n} evaluations" for n in EVALUATIONS])


def at_twice(pipe: LuminaPipeline) -> Image.Image:
  """Canvases at their trained size, and twice that by several rules."""
  columns = [pipe(TWICE, seed=1).images]
  sizes = [(2 * image.height, 2 * image.width) for image in columns[0]]
  usual = pipe.sampling
  for rule in RULES:
    beyond = Extrapolation(rule=rule, side=0, base_tokens=0, proportional=False)
    pipe.sampling = dataclasses.replace(usual, beyond=beyond)
    heights, widths = zip(*sizes, strict=True)
    drawn = pipe(TWICE, seed=1, height=list(heights), width=list(widths))
    columns.append(drawn.images)
  pipe.sampling = usual
  rows = [
    [enlarged(image, 128 // image.width) for image in row]
    for row in zip(*columns, strict=True)
  ]
  heads = ["trained size", *(f"twice, {rule}" for rule in RULES)]
  return sheet(rows, TWICE, heads)


def by_strength(pipe: LuminaPipeline) -> Image.Image:
  """A digit that becomes another one, the more the higher the strength."""
  unseen = split(0.2)[1]
  sources = unseen.images[unseen.labels == SOURCE][: len(SEEDS)]
  columns = [(sources[..., None] + 1) / 2]
  for strength in STRENGTHS:
    drawn = pipe(
      [WANTED] * len(SEEDS),
      image=list(columns[0]),
      strength=strength,
      seed=list(SEEDS),
      output_type="np",
    )
    columns.append(np.stack(drawn.images))
  pixels = np.round(np.stack(columns, 1)[..., 0] * 255).astype(np.uint8)
  rows = [[enlarged(Image.fromarray(x), 10) for x in row] for row in pixels]
  heads = ["source", *(f"{strength:g}" for strength in STRENGTHS)]
  return sheet(rows, [f"seed {seed}" for seed in SEEDS], heads)


def main(argv: list[str]) -> None:
  pipe = LuminaPipeline.from_pretrained()
  makers = dict(solvers=by_solvers, twice=at_twice, strengths=by_strength)
  for name in argv[1:] or makers:
    path = DOCS / f"{name}.png"
    picture.save(makers[name](pipe), path)
    print(f"written: {path}")


if __name__ == "__main__":
  entry_point.run(main)
