"""What a call asks for: arguments, one or one each, as pictures to make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lumina_jax import inputs, sizes
from lumina_jax.backbone import ModelConfig
from lumina_jax.pictures import Picture
from lumina_jax.sampler import SamplingConfig
from lumina_jax.spelling import Spell
from lumina_jax.tokens import Grid

Of = tuple[ModelConfig, SamplingConfig, int]


def grids(of: Of, prompts: Sequence[str], size: tuple[Any, Any]) -> list[Grid]:
  """The layout of each prompt's pictures.

  Args:
    of: the network, its rules of sizes, and pixels along a latent.
    prompts: that the rules may read sizes off.
    size: height and width in pixels, each one, one for each, or None.

  Raises:
    ValueError: naming a size that cannot be drawn.
  """
  heights, widths = (
    inputs.one_each(side, len(prompts), name)
    for side, name in zip(size, ("height", "width"), strict=True)
  )
  return [
    sizes.grid(*of, text, *side)
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
  layouts = grids(of, prompts, size)
  channels = (of[0].channels,)
  shapes = [grid.shape + channels for grid in layouts for _ in range(each)]
  starts = iter(inputs.latents(start.latents, shapes))
  # Encoding is not for nothing: without guidance nothing reads the negatives.
  guided = any(scale != 1 for scale in scales)
  spelled = spell(prompts, negatives if guided else None)
  return [
    Picture(text, grid, *codes, *next(seeds), scale, next(starts))
    for text, grid, codes, scale in zip(
      prompts, layouts, spelled, scales, strict=True
    )
    for _ in range(each)
  ]
