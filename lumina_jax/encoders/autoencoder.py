"""A codec of images: an autoencoder with its parameters.

H rows and W columns of pixels, h and w of latents, C latent channels.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.encoders import tiles, vae
from lumina_jax.encoders.vae import Params, VaeConfig
from lumina_jax.parallel.mesh import RULES

logger = logging.getLogger(__name__)


# Traced functions log once per shape, when they compile.
@functools.partial(jax.jit, static_argnames="cfg")
def _moments(params, images, *, cfg):
  logger.info("compiling the encoder for images %s", images.shape)
  with nn.logical_axis_rules(RULES):
    return jnp.concatenate(vae.moments(cfg, params, images), axis=-1)


@functools.partial(jax.jit, static_argnames="cfg")
def _decode(params, latents, *, cfg):
  logger.info("compiling the decoder for latents %s", latents.shape)
  with nn.logical_axis_rules(RULES):
    z = latents / cfg.scaling_factor + cfg.shift_factor
    return vae.decode(cfg, params, z)


@functools.partial(jax.jit, static_argnames="cfg")
def _to_latents(moments, key, *, cfg):
  z, logvar = jnp.split(moments, 2, axis=-1)
  if key is not None:
    z = z + jnp.exp(logvar / 2) * jax.random.normal(key, z.shape)
  return (z - cfg.shift_factor) * cfg.scaling_factor


class Autoencoder:
  """A codec of images, or of videos frame by frame; see `Codec`.

  Each size of images and of batches compiles one program, which the log
  reports. `tile` bounds memory by a part of an image, `frames_at_once` by a
  number of images.

  Attributes:
    cfg: config of the network.
    params: parameters of the network.
    tile: side of tiles in pixels, into which larger images are split; None =
      images stay whole.
    frames_at_once: images in a batch; the last batch is padded. None = all.
    frame_axes: axes before height and width that a medium has: 0 for images, 1
      for videos, whose frames are independent images.
  """

  def __init__(
    self,
    cfg: VaeConfig,
    params: Params,
    tile: int | None = None,
    frames_at_once: int | None = None,
    frame_axes: int = 0,
  ):
    """Takes a config and its parameters.

    Raises:
      ValueError: if tile or frames_at_once is too small. Setting the attributes
        raises the same.
    """
    self.cfg, self.params = cfg, params
    self.tile, self.frames_at_once = tile, frames_at_once
    self.frame_axes = frame_axes

  @property
  def factors(self) -> tuple[int, ...]:
    """1 for axes of frames; pixels per latent along height and width."""
    return (1,) * self.frame_axes + (self.cfg.factor,) * 2

  @property
  def channels(self) -> int:
    """Channels of images."""
    return self.cfg.channels

  @property
  def latent_channels(self) -> int:
    """Channels of latents."""
    return self.cfg.latent_channels

  @property
  def tile(self) -> int | None:
    return self._tile

  @tile.setter
  def tile(self, tile: int | None) -> None:
    self._tile = tiles.checked_tile(tile, self.cfg.factor)

  @property
  def frames_at_once(self) -> int | None:
    return self._frames_at_once

  @frames_at_once.setter
  def frames_at_once(self, frames_at_once: int | None) -> None:
    self._frames_at_once = tiles.checked_frames(frames_at_once)

  def encode(
    self, images: jax.Array, key: jax.Array | None = None
  ) -> jax.Array:
    """Encodes images as latents, shifted and scaled for a backbone.

    Args:
      images: `f32[..., H, W, channels]` in [-1, 1].
      key: samples latents from their distribution, with the same noise in tiles
        as whole; None = its mode.

    Returns:
      `f32[..., H / factor, W / factor, C]`.

    Raises:
      ValueError: if shape or dtype are wrong, or H or W is not a multiple of
        the factor.
    """
    cfg = self.cfg
    self._check("images", images, cfg.channels)
    H, W = images.shape[-3:-1]
    if H % cfg.factor or W % cfg.factor:
      raise ValueError(
        f"images of {H} x {W}: both must be multiples of {cfg.factor}; crop or "
        "resize them"
      )
    run = functools.partial(_moments, self.params, cfg=cfg)
    moments = self._run_in_parts(run, images, cfg.factor, 1)
    return _to_latents(moments, key, cfg=cfg)

  def decode(self, latents: jax.Array) -> jax.Array | np.ndarray:
    """Decodes latents; the inverse of `encode`.

    Args:
      latents: `f32[..., h, w, C]` of `encode` or a backbone.

    Returns:
      `f32[..., h * factor, w * factor, channels]`, not clipped to [-1, 1]; on
      the host if there are several parts.

    Raises:
      ValueError: if shape or dtype are wrong.
    """
    cfg = self.cfg
    self._check("latents", latents, cfg.latent_channels)
    run = functools.partial(_decode, self.params, cfg=cfg)
    return self._run_in_parts(run, latents, 1, cfg.factor)

  def _run_in_parts(self, run, x, in_scale, out_scale):
    cells = self.tile and self.tile // self.cfg.factor
    return tiles.run_in_parts(
      run, x, in_scale, out_scale, cells, self.frames_at_once
    )

  def _check(self, name: str, x: jax.Array, channels: int) -> None:
    if not hasattr(x, "shape"):
      raise ValueError(f"{name} of type {type(x).__name__}: expected an array")
    axes = "frames, " * self.frame_axes + f"rows, columns, {channels}"
    few = x.ndim <= len(self.factors)
    if few or x.shape[-1] != channels or 0 in x.shape:
      raise ValueError(
        f"{name} of shape {x.shape}: expected [..., {axes}], channels last, no "
        "empty axis"
      )
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(
        f"{name} of dtype {x.dtype}: expected floating-point numbers; convert "
        "bytes with x / 127.5 - 1"
      )
