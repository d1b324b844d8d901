"""The output of a call, and the conversion of samples to it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lumina_jax.files.suggest import did_you_mean
from lumina_jax.media import MEDIA, Medium

LATENT, RAW = "latent", "raw"  # Before decoding; decoded, in [-1, 1].


@dataclasses.dataclass(frozen=True)
class Output:
  """Samples of a call.

  They are also an attribute by the name of their medium: `.images`, `.frames`,
  `.audios`.

  Attributes:
    samples: one for each prompt and sample of it, in order.
    medium: of the samples.
    evaluations: of the velocity for each sample, by the batch that it was in;
      guidance evaluates two branches in each.
  """

  samples: list[Any]
  medium: Medium
  evaluations: list[int] = dataclasses.field(default_factory=list)

  def __getattr__(self, name: str) -> list[Any]:
    # Reached only for names that are not attributes already.
    known = {medium.output for medium in MEDIA.values()}
    if name not in known:
      raise AttributeError(f"Output has no attribute {name!r}")
    if name != self.medium.output:
      raise AttributeError(
        f"this pipeline generates {self.medium.plural}: use "
        f".{self.medium.output}"
      )
    return self.samples

  def __dir__(self):
    return [*super().__dir__(), self.medium.output]

  def __getitem__(self, index: int) -> list[Any]:
    """Behaves like the tuple that return_dict=False gives."""
    return (self.samples,)[index]


def converter(
  medium: Medium, output_type: str | None, decodes: bool
) -> tuple[str, Callable[[np.ndarray], Any]]:
  """The output type of a call, and how to convert samples to it.

  Args:
    medium: of the samples.
    output_type: a format of the medium, "latent" or "raw"; None = the first
      format, or latents if the medium has none.
    decodes: whether there is a codec.

  Raises:
    ValueError: for an unknown output type.
  """
  known = [*medium.formats, LATENT, RAW]
  if output_type is None:
    output_type = known[0]
  if output_type in (LATENT, RAW):
    return output_type, np.asarray
  if output_type not in medium.formats:
    hint = did_you_mean(output_type, known)
    if output_type == "pt":
      hint = "; torch.from_numpy converts arrays;"
    elif not medium.formats and not decodes:
      hint = f"; no codec decodes {medium.plural} yet;"
    raise ValueError(
      f"unknown output_type {output_type!r}{hint or ';'} use one of: "
      f"{', '.join(known)}"
    )
  return output_type, medium.formats[output_type]


def check_finite(sample: np.ndarray, description: str, dtype: str) -> None:
  """Refuses samples with values that are not finite.

  Args:
    sample: latents or a decoded sample.
    description: of the sample, for messages.
    dtype: that it was computed in.

  Raises:
    FloatingPointError: if a value is not finite.
  """
  wrong = np.size(sample) - np.count_nonzero(np.isfinite(sample))
  if wrong:
    advice = (
      "the weights may be broken, or guidance_scale too high"
      if dtype == "float32"
      else f"{dtype} may be too coarse for this network: load it with "
      'dtype="float32"'
    )
    raise FloatingPointError(
      f"{description}: {wrong} of {np.size(sample)} values are not finite; "
      f"{advice}"
    )
