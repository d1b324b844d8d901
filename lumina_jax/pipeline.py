"""LuminaPipeline: prompts in, pictures out.

pipe = LuminaPipeline.from_workdir("runs/digits")
out = pipe(["3 1 4", "a handwritten seven"], seed=0, guidance_scale=2.0)
out.images[0].save("pi.png")
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lumina_jax import pictures as picture_batches
from lumina_jax import sampler
from lumina_jax.flow import ode, schedule
from lumina_jax.network import Network, Params
from lumina_jax.pictures import Picture
from lumina_jax.sampler import SamplingConfig
from lumina_jax.tokens import Grid


@dataclasses.dataclass(frozen=True)
class Output:
  """Attributes: images, one for each prompt times num_images_per_prompt."""

  images: list[Any]


class LuminaPipeline:
  """A network with its parameters, ready to sample."""

  def __init__(
    self, network: Network, params: Params, sampling: SamplingConfig
  ):
    self.network, self.params, self.sampling = network, params, sampling

  @classmethod
  def from_workdir(cls, workdir: str) -> LuminaPipeline:
    """Loads the averaged parameters of a run's newest readable checkpoint.

    Raises:
      FileNotFoundError: if the folder is no workdir or has no checkpoint.
    """
    from lumina_jax import workdir as workdirs

    return workdirs.load_pipeline(workdir)

  @classmethod
  def from_pretrained(cls, folder: str | None = None) -> LuminaPipeline:
    """Loads an exported folder; without one, the digits that ship with us.

    Raises:
      FileNotFoundError: if the folder lacks a file.
    """
    from lumina_jax import export

    return export.load(folder)

  def save_pretrained(self, folder: str) -> None:
    """Exports weights (safetensors, bfloat16) and configuration."""
    from lumina_jax import export

    export.save(self, folder)

  def __call__(
    self,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] = "",
    height: int | Sequence[int] | None = None,
    width: int | Sequence[int] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] = 0,
    solver: str | None = None,
    shift: float | None = None,
    output_type: str = "pil",
    progress: Callable[[int, int], None] | None = None,
  ) -> Output:
    """Makes pictures of prompts.

    The same seed, prompt and number within num_images_per_prompt give the same
    picture, whatever else is in the call; give `seed` one value per prompt to
    vary equal prompts.

    Args:
      prompt: one or several, text or the number of a class, as the network
        takes; "" is unconditional.
      negative_prompt: what guidance steers away from, one or one per prompt.
      height: in pixels or latents, one or one per prompt; None: the size rule.
      width: likewise.
      num_inference_steps: integration steps.
      guidance_scale: one or one per prompt; 1 is plain sampling, and if all
        are 1 it costs half.
      num_images_per_prompt: pictures of each prompt.
      seed: one or one per prompt.
      solver: "euler", "midpoint", "heun" or "rk4".
      shift: of the time grid.
      output_type: "pil"; "np" for `u8[H, W, C]`; "latent" for what the network
        drew, `f32[H, W, C]`, neither clipped nor rounded.
      progress: called with (pictures done, pictures in all) after each batch.

    Returns:
      `Output` with images in the order of the prompts.

    Raises:
      ValueError: for a size that the patch does not divide or that no rung
        holds, a class that is none, lists of unlike lengths, unknown names, no
        prompt at all.
    """
    defaults = self.sampling
    if output_type not in OUTPUT_TYPES:
      known = ", ".join(OUTPUT_TYPES)
      raise ValueError(f"output_type {output_type!r}: use one of {known}")
    steps = _or(num_inference_steps, defaults.num_inference_steps)
    if steps < 1:
      raise ValueError(f"num_inference_steps = {steps} must be positive")
    factor = _or(shift, defaults.shift)
    if not (factor > 0 and math.isfinite(factor)):
      raise ValueError(f"shift = {factor} must be positive and finite")
    tableau = ode.solver(_or(solver, defaults.solver))
    pictures = self.pictures(
      prompt,
      negative_prompt,
      height,
      width,
      guidance_scale,
      num_images_per_prompt,
      seed,
    )
    times = schedule.shift(schedule.uniform(steps), factor)
    images: dict[int, np.ndarray] = {}
    for batch in picture_batches.batches(
      pictures, self.network, defaults.ladder, defaults.rows, times
    ):
      patches = sampler.sample(
        self.params, batch.request, network=self.network, solver=tableau
      )
      images |= batch.cut(np.asarray(patches))
      if progress:
        progress(len(images), len(pictures))
    finish = OUTPUT_TYPES[output_type]
    return Output([finish(images[i]) for i in range(len(pictures))])

  def pictures(
    self,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] = "",
    height: int | Sequence[int] | None = None,
    width: int | Sequence[int] | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] = 0,
  ) -> list[Picture]:
    """What a call would draw: every input checked, nothing drawn yet."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or not all(
      isinstance(text, str) for text in prompts
    ):
      raise ValueError(f"prompt {prompt!r}: a string or a list of strings")
    if not prompts:
      raise ValueError('no prompt; use "" for an unconditional picture')
    if num_images_per_prompt < 1:
      raise ValueError(
        f"num_images_per_prompt = {num_images_per_prompt} must be positive"
      )
    count = len(prompts)
    scale = _or(guidance_scale, self.sampling.guidance_scale)
    pictures = []
    for text, minus, high, wide, strength, number in zip(
      prompts,
      _one_each(negative_prompt, count, "negative_prompt"),
      _one_each(height, count, "height"),
      _one_each(width, count, "width"),
      _one_each(scale, count, "guidance_scale"),
      _one_each(seed, count, "seed"),
      strict=True,
    ):
      if not 0 <= number < 2**32:
        raise ValueError(f"seed = {number}: from 0, below 2**32")
      grid = self._grid(text, high, wide)
      codes = self.network.tokenize(text), self.network.tokenize(minus)
      pictures += [
        Picture(grid, *codes, int(number), i, float(strength))
        for i in range(num_images_per_prompt)
      ]
    return pictures

  def _grid(self, prompt: str, height: int | None, width: int | None) -> Grid:
    rule = self.sampling
    by_rule = rule.height, rule.width
    if rule.size_rule == "digits":
      from data_pipelines import captions

      by_rule = captions.size(prompt)
    height, width = _or(height, by_rule[0]), _or(width, by_rule[1])
    if height != int(height) or width != int(width):
      raise ValueError(f"height={height}, width={width}: whole pixels only")
    height, width = int(height), int(width)
    try:
      grid = self.network.model.grid(height, width)
    except ValueError as error:
      raise ValueError(f"height={height}, width={width}: {error}") from error
    most = rule.ladder[-1][0]
    if grid.num_tokens > most:
      raise ValueError(
        f"height={height}, width={width} makes {grid.num_tokens} tokens; the "
        f"largest rung of the ladder holds {most}. Ask for a smaller picture, "
        "or add a rung to config.sampling.ladder"
      )
    return grid


def _or(value, default):
  return default if value is None else value


def _one_each(value, count: int, name: str) -> list[Any]:
  """Repeats a single value, or checks that there is one per prompt."""
  if value is None or isinstance(value, (str, int, float, np.generic)):
    return [value] * count
  values = list(value)
  if len(values) != count:
    raise ValueError(
      f"{name} has {len(values)} values for {count} prompts; give one, or one "
      "for each"
    )
  return values


def _to_uint8(image: np.ndarray) -> np.ndarray:
  """Pixels `f32[H, W, C]` in [-1, 1] -> `u8[H, W, C]`."""
  if not np.all(np.isfinite(image)):
    logging.warning(
      "a picture holds values that are not finite; shown as black"
    )
    image = np.nan_to_num(image, nan=-1.0, posinf=1.0, neginf=-1.0)
  return np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)


def _to_pil(image: np.ndarray) -> Image.Image:
  """Grey or colours; of latents their first three channels, as colours."""
  pixels = _to_uint8(image)
  if pixels.shape[-1] == 1:
    return Image.fromarray(pixels[..., 0])
  # There is no decoder yet. These show shapes, not what the picture looks like.
  pixels = pixels[..., :3]
  missing = 3 - pixels.shape[-1]
  return Image.fromarray(np.pad(pixels, ((0, 0), (0, 0), (0, missing))))


OUTPUT_TYPES = {"pil": _to_pil, "np": _to_uint8, "latent": np.asarray}
