"""Codecs encode samples of a medium as latents and decode them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from lumina_jax.encoders import tiles


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


class Framewise:
  """A codec of videos: applies a codec of images to each frame.

  Attributes:
    codec: codec of a frame.
    factors: (1, *factors of the codec).
    frames_at_once: frames in a batch; the last batch is padded. None = all.
    tile: that of the codec of frames, see `Autoencoder`.
  """

  def __init__(self, codec: Codec, frames_at_once: int | None = 8):
    """Wraps a codec.

    Raises:
      ValueError: if frames_at_once is not positive.
    """
    self.codec, self.frames_at_once = codec, frames_at_once
    self.factors = (1, *codec.factors)
    self.channels = codec.channels
    self.latent_channels = codec.latent_channels

  @property
  def frames_at_once(self) -> int | None:
    return self._frames_at_once

  @frames_at_once.setter
  def frames_at_once(self, frames_at_once: int | None) -> None:
    self._frames_at_once = tiles.checked_frames(frames_at_once)

  @property
  def tile(self) -> int | None:
    return self.codec.tile

  @tile.setter
  def tile(self, tile: int | None) -> None:
    self.codec.tile = tile

  @property
  def params(self) -> Any:
    """Parameters of the codec."""
    return self.codec.params

  @property
  def cfg(self) -> Any:
    """Config of the codec."""
    return self.codec.cfg

  def encode(
    self, x: jax.Array, key: jax.Array | None = None
  ) -> jax.Array | np.ndarray:
    """Encodes videos.

    Args:
      x: videos `f32[..., F, *sample, channels]`.
      key: samples latents from their distribution, frame by frame: the key of
        frame n is `fold_in(key, n)`. None = its mode.

    Returns:
      `f32[..., F, *latent, latent_channels]`.

    Raises:
      ValueError: if x has no axis of frames, or the codec refuses a frame.
    """
    if key is None:
      return self._run(self.codec.encode, x, self.frames_at_once)
    keys = (jax.random.fold_in(key, n) for n in itertools.count())
    return self._run(lambda frame: self.codec.encode(frame, next(keys)), x, 1)

  def decode(self, z: jax.Array) -> jax.Array | np.ndarray:
    """Decodes latents of videos.

    Args:
      z: latents `f32[..., F, *latent, latent_channels]`.

    Returns:
      `f32[..., F, *sample, channels]`.

    Raises:
      ValueError: as in `encode`.
    """
    return self._run(self.codec.decode, z, self.frames_at_once)

  def _run(
    self, run: Callable[..., Any], x: jax.Array, batch_size: int | None
  ) -> jax.Array | np.ndarray:
    rank = len(self.codec.factors) + 1  # Axes of a frame, channels among them.
    if x.ndim <= rank:
      raise ValueError(
        f"video of shape {x.shape}: expected an axis of frames before the last "
        f"{rank} axes; add one, x[None]"
      )
    frames = x.reshape(-1, *x.shape[-rank:])
    out = tiles.run_batches(run, frames, batch_size)
    return out.reshape(*x.shape[:-rank], *out.shape[1:])
