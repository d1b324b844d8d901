"""Autoencoder: pictures to latents and back, whole or in pieces.

B frames, H rows, W columns of pixels, h and w of latents, C latent channels.
"""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.encoders import tiles
from lumina_jax.encoders.vae import Params, VaeConfig, moments, picture
from lumina_jax.parallel.mesh import RULES

logger = logging.getLogger(__name__)


# Logging within a traced function speaks when it is traced: once a size.
@functools.partial(jax.jit, static_argnames="cfg")
def _moments(params, images, *, cfg):
  logger.info("compiling the encoder for images %s", images.shape)
  with nn.logical_axis_rules(RULES):
    return jnp.concatenate(moments(cfg, params, images), axis=-1)


@functools.partial(jax.jit, static_argnames="cfg")
def _picture(params, latents, *, cfg):
  logger.info("compiling the decoder for latents %s", latents.shape)
  with nn.logical_axis_rules(RULES):
    z = latents / cfg.scaling_factor + cfg.shift_factor
    return picture(cfg, params, z)


@functools.partial(jax.jit, static_argnames="cfg")
def _latents(both, key, *, cfg):
  z, logvar = jnp.split(both, 2, axis=-1)
  if key is not None:
    z = z + jnp.exp(logvar / 2) * jax.random.normal(key, z.shape)
  return (z - cfg.shift_factor) * cfg.scaling_factor


class Autoencoder:
  """A codec of images: an autoencoder with its parameters.

  Every size of an image, and number of images in a batch, compiles a program of
  its own, which the log tells. `tile` bounds memory by a part of an image,
  `frames_at_once` by a number of images.

  Attributes:
    cfg: config of the network.
    params: of the network.
    tile: side in pixels of the tiles that larger images are split into; None =
      images stay whole.
    frames_at_once: images in one batch; the last is padded. None = all.
  """

  def __init__(
    self,
    cfg: VaeConfig,
    params: Params,
    tile: int | None = None,
    frames_at_once: int | None = None,
  ):
    self.cfg, self.params = cfg, params
    self.tile, self.frames_at_once = tile, frames_at_once

  @property
  def factors(self) -> tuple[int, int]:
    """Pixels per latent along height and width."""
    return self.cfg.factor, self.cfg.factor

  @property
  def channels(self) -> int:
    return self.cfg.channels

  @property
  def latent_channels(self) -> int:
    return self.cfg.latent_channels

  def encode(
    self,
    images: jax.Array,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Latents of images, shifted and scaled for a backbone.

    Args:
      images: `f32[..., H, W, 3]` in [-1, 1], with any axes before.
      key: draws latents from their distribution, the same in tiles as whole;
        None = its mode.

    Returns:
      `f32[..., H / factor, W / factor, C]`.

    Raises:
      ValueError: if they are no such pictures, their sides are no multiples of
        the factor, or tile or frames_at_once is too small.
    """
    cfg = self.cfg
    _check("images", images, cfg.channels)
    H, W = images.shape[-3:-1]
    if H % cfg.factor or W % cfg.factor:
      raise ValueError(
        f"images of {H} x {W}: both must be multiples of {cfg.factor}; crop or "
        "resize them"
      )
    run = functools.partial(_moments, self.params, cfg=cfg)
    walk = tiles.Walk(run, cfg.factor, 1, self.tile, self.frames_at_once)
    return _latents(walk(images), key, cfg=cfg)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Pictures of latents, the inverse of `encode`.

    Args:
      latents: `f32[..., h, w, C]` of `encode` or a backbone.

    Returns:
      `f32[..., h * factor, w * factor, 3]`, not clipped to [-1, 1]; in the
      host's memory if they went in pieces.

    Raises:
      ValueError: as in `encode`.
    """
    cfg = self.cfg
    _check("latents", latents, cfg.latent_channels)
    run = functools.partial(_picture, self.params, cfg=cfg)
    walk = tiles.Walk(run, 1, cfg.factor, self.tile, self.frames_at_once)
    return walk(latents)


def _check(name: str, x: jax.Array, channels: int) -> None:
  if x.ndim < 3 or x.shape[-1] != channels or 0 in x.shape:
    raise ValueError(
      f"{name} of shape {x.shape}: expected [..., rows, columns, {channels}], "
      "channels last and none of them 0"
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"{name} of type {x.dtype}: expected floating-point numbers; bytes "
      "become pictures by x / 127.5 - 1"
    )
