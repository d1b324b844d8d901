"""Defaults for published networks, as the original samples them."""

from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.text_features import GEMMA, LLAMA, TextFeaturesConfig
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig, TrainedSize

TRAINED = 1024  # Pixels along a side; text-to-image networks were trained last.


def options(model: ModelConfig) -> SamplingOptions:
  """Sampling options of an image network.

  Text: 20 midpoint steps (the original counts 21 points of time), most of them
  near noise, guidance 4 on three channels, and the family's rule for larger
  sizes. Classes were sampled at one size, without a shift.
  """
  text = bool(model.text_width)
  rule = "ntk_plain" if model.raster else "watershed"
  return SamplingOptions(
    solver="midpoint",
    num_inference_steps=20 if text else 50,
    guidance_scale=4.0,
    shift=4.0 if text else 1.0,
    guidance_channels=3,
    rope_scaling=rule if text else "none",
    proportional_attention=text,
  )


def sizes(model: ModelConfig, side: int) -> SizeConfig:
  """Sizes of an image network.

  Args:
    model: the backbone.
    side: of the square that it was trained on, in latents.
  """
  trained = None
  if model.text_width:
    patches = side // model.patch[0]
    lines = 2 * patches if model.separators else 0  # As the original counts.
    tokens = patches**2 + lines
    trained = TrainedSize(side, tokens, below=model.raster)
  return SizeConfig(default=(side, side), trained=trained)


def text_config(model: ModelConfig) -> TextFeaturesConfig | None:
  """The language model of a network: LLaMA-2 for Flag-DiT, else Gemma."""
  if not model.text_width:
    return None
  return TextFeaturesConfig(
    model.text_width, **(LLAMA if model.separators else GEMMA)
  )
