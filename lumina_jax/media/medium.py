"""Medium: everything that the rest of the package knows of a modality.

A modality is a medium, a codec and a config. Everything between a prompt and
the latents of its sample is the same for all of them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from lumina_jax.files import numbers

Convert = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Axis:
  """An axis of a medium's grid.

  Attributes:
    argument: keyword of a call, and flag, that sets its extent.
    unit: "pixels", "frames", "seconds" or "latents".
    help: describes the argument.
  """

  argument: str
  unit: str
  help: str

  def extent(self, value: Any, factor: int, patch: int, rate: float) -> int:
    """Converts a requested size to latents.

    Args:
      value: the size, in units.
      factor: units per latent; seconds use the rate instead.
      patch: latents per token.
      rate: latents per second.

    Raises:
      ValueError: if no whole number of patches has that size.
    """
    if self.unit == "seconds":
      return self._latents_of_seconds(value, patch, rate)
    whole, step = numbers.whole(value, self.argument), factor * patch
    if whole < step or whole % step:
      below = whole // step * step
      near = f"{below} or {below + step}" if below > 0 else str(step)
      raise ValueError(
        f"{self.argument} = {whole} is not a positive multiple of {step} "
        f"({factor} {self.unit} per latent times a patch of {patch}); the "
        f"nearest that is: {near}"
      )
    return whole // factor

  def _latents_of_seconds(self, value: Any, patch: int, rate: float) -> int:
    if not rate > 0:
      raise ValueError(
        f"{self.argument} = {value!r}: this pipeline does not know how many "
        "latents a second has; set config.sizes.rate"
      )
    seconds = numbers.number(value, self.argument)
    if seconds <= 0:
      raise ValueError(f"{self.argument} = {value!r}: must be positive seconds")
    # A product that rounding lifts above a whole number stays there.
    latents = math.ceil(seconds * rate - 1e-6)
    return -(-max(latents, 1) // patch) * patch


@dataclasses.dataclass(frozen=True)
class Medium:
  """A modality.

  Samples are arrays `f32[*shape, C]`, decoded ones mostly in [-1, 1].

  Attributes:
    name: "image", "video", "audio"; configs and weights refer to it.
    plural: of the name, for messages.
    axes: of its grid, in the order of the shape.
    output: attribute of `Output` that holds its samples: "images", "frames".
    per_prompt: argument for the number of samples of each prompt.
    formats: output_type -> converts a decoded sample; the first is the default.
    suffix: of the file that `write` makes.
    write: writes a sample and its metadata to `<stem><suffix>`, and perhaps
      previews beside it; returns the files.
    preview: a sample as a picture, for sheets and reports.
    load: (values of a caller, channels) -> initial samples, one or one for each
      prompt; None if samples of this medium cannot start from another one.
  """

  name: str
  plural: str
  axes: tuple[Axis, ...]
  output: str
  per_prompt: str
  formats: Mapping[str, Convert]
  suffix: str
  write: Callable[[np.ndarray, epath.Path, Mapping[str, str]], list[epath.Path]]
  preview: Callable[[np.ndarray], Image.Image]
  load: Callable[[Any, int], list[np.ndarray]] | None = None

  def shape(
    self,
    sizes: Sequence[Any],
    default: Sequence[int],
    factors: Sequence[int],
    patch: Sequence[int],
    rate: float,
  ) -> tuple[int, ...]:
    """Extents of the latents of a sample.

    Args:
      sizes: requested size along each axis, in units; None = the default.
      default: extents in latents.
      factors: units per latent along each axis; see `Codec.factors`.
      patch: latents per token along each axis.
      rate: latents per second.

    Raises:
      ValueError: naming a size that cannot be generated.
    """
    return tuple(
      extent if size is None else axis.extent(size, factor, side, rate)
      for axis, size, extent, factor, side in zip(
        self.axes, sizes, default, factors, patch, strict=True
      )
    )

  def sizes(self, shape: Sequence[int], rate: float) -> dict[str, Any]:
    """Sizes of a decoded sample by argument; its last axis is the channels."""
    return {
      axis.argument: extent / rate
      if axis.unit == "seconds" and rate
      else extent
      for axis, extent in zip(self.axes, shape, strict=False)
    }
