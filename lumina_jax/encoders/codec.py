"""Codecs encode samples of a medium as latents and decode them."""

from typing import Any, Protocol, runtime_checkable

import jax


@runtime_checkable
class Codec(Protocol):
  """Encodes samples as latents and decodes them.

  Attributes:
    factors: values per latent along each axis of the medium: (8, 8) for images,
      (1, 8, 8) for videos, (320,) for audio.
    channels: channels of samples.
    latent_channels: channels of latents.
    params: parameters; callers run the codec on the devices that hold them.
    cfg: config; its `dtype` names the precision of the computation.
  """

  factors: tuple[int, ...]
  channels: int
  latent_channels: int
  params: Any
  cfg: Any

  def encode(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Encodes samples.

    Args:
      x: samples `f32[..., *sample, channels]` in [-1, 1].
      key: samples latents from their distribution; None = its mode.

    Returns:
      `f32[..., *latent, latent_channels]`, shifted and scaled for a backbone.
    """

  def decode(self, z: jax.Array) -> jax.Array:
    """Decodes latents of `encode` or a backbone.

    Long inputs decode in parts: frames, tiles, windows.

    Args:
      z: latents `f32[..., *latent, latent_channels]`.

    Returns:
      `f32[..., *sample, channels]`, not clipped.
    """
