"""What a call asks for: arguments, one or one each, as pictures to make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling import sizes, source_image
from lumina_jax.sampling.batch import Picture
from lumina_jax.sampling.program import SamplingConfig
from lumina_jax.sampling.prompts import Spell
from lumina_jax.tokens import Grid


class Of(NamedTuple):
  """What draws.

  Attributes:
    model: the backbone.
    sampling: its rules of sizes.
    vae: between pixels and latents; None = it draws pixels.
  """

  model: ModelConfig
  sampling: SamplingConfig
  vae: Any = None

  @property
  def factor(self) -> int:
    """Pixels along a side of a latent."""
    return self.vae.cfg.factor if self.vae else 1

  @property
  def channels(self) -> int:
    """Of its pixels."""
    return self.vae.cfg.channels if self.vae else self.model.channels


def grids(
  of: Of,
  prompts: Sequence[str],
  size: tuple[Any, Any],
  images: Sequence[np.ndarray | None] | None = None,
) -> list[Grid]:
  """The layout of each prompt's pictures.

  Args:
    of: what draws, by its rules of sizes.
    prompts: that the rules may read sizes off.
    size: height and width in pixels, each one, one for each, or None.
    images: pictures `f32[H, W, C]` to begin with, whose sizes are then taken.

  Raises:
    ValueError: naming a size that cannot be drawn, or is not the picture's.
  """
  heights, widths = (
    inputs.one_each(side, len(prompts), name)
    for side, name in zip(size, ("height", "width"), strict=True)
  )
  given = [(n, x) for n, x in enumerate(images or ()) if x is not None]
  if given and len(of.model.patch) != 2:
    raise ValueError("image: this pipeline draws videos, not pictures")
  if given and of.channels not in (1, 3):
    raise ValueError(
      f"image: this pipeline draws latents of {of.channels} channels; load it "
      "with a vae"
    )
  for number, image in given:
    for sides, own, name in zip(
      (heights, widths), image.shape, ("height", "width"), strict=False
    ):
      if sides[number] not in (None, own):
        raise ValueError(
          f"{name}={sides[number]}, but image has {own}: resize it, or leave "
          f"{name} out"
        )
      sides[number] = own
  return [
    sizes.grid(of.model, of.sampling, of.factor, text, *side)
    for text, *side in zip(prompts, heights, widths, strict=True)
  ]


def pictures(
  of: Of,
  prompt: str | Sequence[str],
  negative_prompt: str | Sequence[str] | None,
  size: tuple[Any, Any],
  guidance_scale: float | Sequence[float],
  each: int,
  start: inputs.Start,
  spell: Spell,
) -> list[Picture]:
  """Checks every argument, then spells the prompts, which may take long.

  Args:
    of: as in `grids`.
    prompt: one or several.
    negative_prompt: one, or one for each; None = "".
    size: as in `grids`.
    guidance_scale: one, or one for each.
    each: pictures of a prompt.
    start: what their solves begin with.
    spell: prompts and negative prompts -> codes or features.

  Raises:
    ValueError: naming the argument that does not fit.
  """
  prompts = inputs.prompts(prompt)
  count = len(prompts)
  if each != int(each) or each < 1:
    raise ValueError(f"num_images_per_prompt = {each}: a positive whole number")
  each = int(each)
  if not isinstance(negative_prompt, str) and negative_prompt is not None:
    negative_prompt = inputs.prompts(negative_prompt, "negative_prompt")
  negatives = inputs.one_each(negative_prompt or "", count, "negative_prompt")
  scales = inputs.numbers(guidance_scale, count, "guidance_scale")
  seeds = iter(inputs.seeds(start.seed, start.generator, count, each))
  images = source_image.images(start.image, count, of.channels)
  layouts = grids(of, prompts, size, images)
  naturals = [sizes.natural(of.model, of.sampling, text) for text in prompts]
  channels = (of.model.channels,)
  shapes = [grid.shape + channels for grid in layouts for _ in range(each)]
  starts = iter(inputs.latents(start.latents, shapes))
  # Encoding is not for nothing: without guidance nothing reads the negatives.
  guided = any(scale != 1 for scale in scales)
  spelled = spell(prompts, negatives if guided else None)
  return [
    Picture(text, grid, *codes, *next(seeds), scale, next(starts), *rest)
    for text, grid, codes, scale, *rest in zip(
      prompts, layouts, spelled, scales, images, naturals, strict=True
    )
    for _ in range(each)
  ]
