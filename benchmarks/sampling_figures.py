"""The figures of docs/sampling.md: python -m benchmarks.sampling_figures

With the shipped weights: docs/solvers.png, one canvas by several solvers and
numbers of evaluations; docs/twice.png, canvases at twice their trained size by
several rules for positions; docs/strengths.png, image to image. Arguments
(solvers, twice, strengths) select figures.
"""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.digits import split
from lumina_jax.commands import start as entry_point
from lumina_jax.files.suggest import check_name
from lumina_jax.flow.solvers import get_solver
from lumina_jax.media import image as images
from lumina_jax.pipeline import LuminaPipeline

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
SOURCE, TARGET, SEEDS = 3, "8", (0, 1, 2, 3)


def figure(
  rows: Sequence[Sequence[Image.Image]],
  names: Sequence[str],
  heads: Sequence[str],
) -> Image.Image:
  """Lays images out in rows and columns with names.

  Args:
    rows: images of each row, at their final size.
    names: names of the rows.
    heads: names of the columns.
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
  for left, head in zip(starts, heads, strict=False):
    draw.text((left, MARGIN // 2), head, fill="black", font=font)
  for row, name, height in zip(rows, names, heights, strict=True):
    middle = top + (height - MARGIN - FONT_SIZE) // 2 - 2
    draw.text((MARGIN, middle), name, fill="black", font=font)
    for left, image in zip(starts, row, strict=False):
      out.paste(image, (left, top))
    top += height
  return out


def enlarge(image: Image.Image, factor: int) -> Image.Image:
  return images.enlarge(image.convert("L"), factor)


def solvers_figure(pipe: LuminaPipeline) -> Image.Image:
  """One seed and prompt, by solvers and evaluations."""

  def generate(solver: str, steps: int) -> Image.Image:
    out = pipe(CANVAS, seed=SEED, solver=solver, num_inference_steps=steps)
    return enlarge(out.images[0], 6)

  rows = [
    [
      generate(name, max(1, n // get_solver(name).evaluations))
      for n in EVALUATIONS
    ]
    for name in SOLVERS
  ]
  rows.append([generate("rk4", 64)])
  names = [*SOLVERS, "rk4, 256"]
  return figure(rows, names, [f"{n} evaluations" for n in EVALUATIONS])


def twice_figure(pipe: LuminaPipeline) -> Image.Image:
  """Canvases at their trained size, and at twice that by several rules."""
  columns = [pipe(TWICE, seed=1).images]
  sizes = dict(
    height=[2 * image.height for image in columns[0]],
    width=[2 * image.width for image in columns[0]],
  )
  for rule in RULES:
    columns.append(pipe(TWICE, seed=1, rope_scaling=rule, **sizes).images)
  rows = [
    [enlarge(image, 128 // image.width) for image in row]
    for row in zip(*columns, strict=True)
  ]
  heads = ["trained size", *(f"twice, {rule}" for rule in RULES)]
  return figure(rows, TWICE, heads)


def strengths_figure(pipe: LuminaPipeline) -> Image.Image:
  """Digits that become another digit as the strength rises."""
  held_out = split(0.2)[1]
  sources = held_out.images[held_out.labels == SOURCE][: len(SEEDS)]
  columns = [(sources[..., None] + 1) / 2]
  for strength in STRENGTHS:
    out = pipe(
      [TARGET] * len(SEEDS),
      image=list(columns[0]),
      strength=strength,
      seed=list(SEEDS),
      output_type="np",
    )
    columns.append(np.stack(out.images))
  pixels = np.round(np.stack(columns, 1)[..., 0] * 255).astype(np.uint8)
  rows = [[enlarge(Image.fromarray(x), 10) for x in row] for row in pixels]
  heads = ["source", *(f"{strength:g}" for strength in STRENGTHS)]
  return figure(rows, [f"seed {seed}" for seed in SEEDS], heads)


def main(argv: list[str]) -> None:
  pipe = LuminaPipeline.from_pretrained()
  figures = dict(
    solvers=solvers_figure, twice=twice_figure, strengths=strengths_figure
  )
  for name in argv[1:]:
    check_name("figure", name, figures)
  for name in argv[1:] or figures:
    path = DOCS / f"{name}.png"
    images.save(figures[name](pipe), path)
    print(f"written: {path}")


if __name__ == "__main__":
  entry_point.run(main)
