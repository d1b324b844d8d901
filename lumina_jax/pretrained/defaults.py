"""How published networks are sampled, unless a call says otherwise."""

from __future__ import annotations

from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.frozen import GEMMA, LLAMA, FrozenTextConfig
from lumina_jax.sampling.extrapolation import Extrapolation
from lumina_jax.sampling.program import SamplingConfig

TRAINED = 1024  # Pixels along a side of what text-to-image networks drew last.


def sampling(model: ModelConfig, side: int) -> SamplingConfig:
  """What the original's samplers do with a network.

  Twenty midpoint steps (one more than the original, which counts points of
  time), most of them near noise, guidance 4 on three channels; on sizes beyond
  the trained one, the rules of its family. Networks of classes were sampled at
  one size, by an adaptive solver, without a shift.

  Args:
    model: an image network.
    side: of the square that it was trained on, in latents.
  """
  patches = side // model.patch[0]
  beyond = None
  if model.text_width:
    lines = 2 * patches if model.separators else 0  # As the original counts.
    beyond = Extrapolation(
      rule="ntk_plain" if model.raster else "watershed",
      side=side,
      base_tokens=patches**2 + lines,
      below=model.raster,
    )
  return SamplingConfig(
    solver="midpoint",
    num_inference_steps=20 if model.text_width else 50,
    guidance_scale=4.0,
    shift=4.0 if model.text_width else 1.0,
    size_rule="fixed",
    height=side,
    width=side,
    ladder=(),
    rows=1,
    guidance_channels=3,
    beyond=beyond,
  )


def text(model: ModelConfig) -> FrozenTextConfig | None:
  """How captions reach a network: LLaMA-2 reads for Flag-DiT, else Gemma."""
  if not model.text_width:
    return None
  return FrozenTextConfig(
    model.text_width, **(LLAMA if model.separators else GEMMA)
  )
