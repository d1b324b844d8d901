"""Sizes of pictures and videos: from what is asked to a grid of latents."""

from __future__ import annotations

from lumina_jax.backbone import ModelConfig
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling.program import SamplingConfig
from lumina_jax.tokens import Grid


def grid(
  model: ModelConfig,
  sampling: SamplingConfig,
  factor: int,
  prompt: str,
  height: int | None,
  width: int | None,
) -> Grid:
  """The layout of one picture, or of one video, whose length is the config's.

  Args:
    model: draws it.
    sampling: its size rule and ladder.
    factor: pixels along a latent; 1 without an autoencoder.
    prompt: that the rule may read the size off.
    height: in pixels; None = by the rule.
    width: likewise.

  Raises:
    ValueError: if no patches make up the size, or no rung holds it.
  """
  by_rule = sampling.height * factor, sampling.width * factor
  if sampling.size_rule == "digits":
    from data_pipelines import captions

    by_rule = captions.size(prompt)
  height = by_rule[0] if height is None else height
  width = by_rule[1] if width is None else width
  asked = f"height={height}, width={width}"
  length = (sampling.frames,) if len(model.patch) == 3 else ()
  if length:
    asked = f"frames={sampling.frames}, {asked}"
  try:
    height, width = (inputs.whole(side, "side") for side in (height, width))
  except ValueError as error:
    raise ValueError(f"{asked}: whole pixels only") from error
  if factor > 1:
    _check_pixels(asked, height, width, factor, model.patch[-2:])
  try:
    found = model.grid(*length, height // factor, width // factor)
  except ValueError as error:
    raise ValueError(f"{asked}: {error}") from error
  ladder = sampling.ladder
  if ladder and found.num_tokens > ladder[-1][0]:
    raise ValueError(
      f"{asked} makes {found.num_tokens} tokens; the largest rung of the "
      f"ladder holds {ladder[-1][0]}. Ask for a smaller picture, or add a rung "
      "to config.sampling.ladder"
    )
  return found


def natural(
  model: ModelConfig, sampling: SamplingConfig, prompt: str
) -> Grid | None:
  """The layout that training gave to such a prompt; None = one for all."""
  if sampling.size_rule != "digits":
    return None
  from data_pipelines import captions

  return model.grid(*captions.size(prompt))


def _check_pixels(asked, height, width, factor, patch) -> None:
  for name, size, side in zip(
    ("height", "width"), (height, width), patch, strict=True
  ):
    step = factor * side
    if size < step or size % step:
      below, above = max(size // step, 1) * step, (size // step + 1) * step
      near = f"{below} or {above}" if below != above else str(below)
      raise ValueError(
        f"{asked}: {name} is no multiple of {step} ({factor} pixels a latent "
        f"times a patch of {side}); near it are {near}"
      )
