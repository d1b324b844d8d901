"""Codecs: between samples of a medium and latents."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from lumina_jax.encoders import tiles


@runtime_checkable
class Codec(Protocol):
  """Encodes samples as latents and decodes them.

  Attributes:
    factors: values per latent along each axis: (8, 8), (1, 8, 8), (320,).
    channels: of samples.
    latent_channels: of latents.
  """

  factors: tuple[int, ...]
  channels: int
  latent_channels: int

  def encode(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Latents of samples `f32[..., *shape, channels]`.

    Args:
      x: samples, mostly in [-1, 1].
      key: draws latents from their distribution; None = its mode.
    """

  def decode(self, z: jax.Array) -> jax.Array:
    """Samples of latents `f32[..., *shape, latent_channels]`.

    Long ones decode in parts: frames, tiles, windows.
    """


class Framewise:
  """A codec of images, applied to every frame of a video.

  Attributes:
    frames_at_once: frames in one batch; the last is padded. None = all.
  """

  def __init__(self, codec: Any, frames_at_once: int | None = 8):
    """Takes a codec of images."""
    self._codec, self.frames_at_once = codec, frames_at_once
    self.factors = (1, *codec.factors)
    self.channels = codec.channels
    self.latent_channels = codec.latent_channels

  @property
  def image_codec(self) -> Any:
    return self._codec

  @property
  def params(self) -> Any:
    return self._codec.params

  @property
  def cfg(self) -> Any:
    return self._codec.cfg

  def encode(self, x: jax.Array, key: jax.Array | None = None) -> np.ndarray:
    """Latents `f32[..., F, h, w, c]` of videos `f32[..., F, H, W, C]`."""
    if key is None:
      return self._frames(self._codec.encode, x)
    return self._codec.encode(x, key)

  def decode(self, z: jax.Array) -> np.ndarray:
    """Videos `f32[..., F, H, W, C]` of latents `f32[..., F, h, w, c]`."""
    return self._frames(self._codec.decode, z)

  def _frames(self, run: Any, x: jax.Array) -> np.ndarray:
    frames = x.reshape(-1, *x.shape[-3:])
    count = self.frames_at_once or len(frames)
    out = tiles.batched(run, frames, count)
    return out.reshape(*x.shape[:-3], *out.shape[1:])
