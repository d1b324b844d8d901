"""What a call asks for: arguments, one or one each, as pictures to make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lumina_jax import inputs, sizes
from lumina_jax.backbone import ModelConfig
from lumina_jax.pictures import Picture
from lumina_jax.sampler import SamplingConfig
from lumina_jax.spelling import Spell


def pictures(
  of: tuple[ModelConfig, SamplingConfig, int],
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
    of: the network, its rules of sizes, and pixels along a latent.
    prompt: one or several.
    negative_prompt: one, or one for each; None = "".
    size: height and width in pixels, each one, one for each, or None.
    guidance_scale: one, or one for each.
    each: pictures of a prompt.
    start: what their solves begin with.
    spell: prompts and negative prompts -> codes or features.

  Raises:
    ValueError: naming the argument that does not fit.
  """
  prompts = inputs.prompts(prompt)
  count = len(prompts)
  if each < 1:
    raise ValueError(f"num_images_per_prompt = {each} must be positive")
  negatives = inputs.one_each(negative_prompt or "", count, "negative_prompt")
  scales = inputs.one_each(guidance_scale, count, "guidance_scale")
  seeds = inputs.seeds(start.seed, start.generator, count)
  sides = zip(
    *(
      inputs.one_each(side, count, name)
      for side, name in zip(size, ("height", "width"), strict=True)
    ),
    strict=True,
  )
  grids = [
    sizes.grid(*of, text, *side)
    for text, side in zip(prompts, sides, strict=True)
  ]
  channels = (of[0].channels,)
  shapes = [grid.shape + channels for grid in grids for _ in range(each)]
  starts = iter(inputs.latents(start.latents, shapes))
  spelled = spell(prompts, negatives)
  return [
    Picture(grid, *codes, seed, number, float(scale), next(starts))
    for grid, codes, seed, scale in zip(
      grids, spelled, seeds, scales, strict=True
    )
    for number in range(each)
  ]
