"""The network of the image autoencoder, which is frozen.

A convolutional encoder halves the image between blocks of residual layers, and
a decoder doubles it again. The middle of each has one layer of attention
(Rombach et al. 2022, section 3.1 and appendix G). diffusers calls this network
AutoencoderKL; Stable Diffusion, SDXL, SD3 and FLUX use it. `interop.vae` reads
and writes its folders.

Channels come last everywhere. Every device holds all parameters, 84 million at
most, so their axes have no names. Activations are large; their frames divide
over devices.

B frames, H rows, W columns of pixels, h and w of latents, C latent channels.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lumina_jax.attention import attend_local
from lumina_jax.backbone.layers import Einsum, xavier
from lumina_jax.encoders.convolution import Conv, GroupNorm

Params = dict[str, Any]

DTYPES = ("float32", "bfloat16")
LOGVAR = -30.0, 20.0  # Bounds of log variances, which keep float32 finite.


@dataclasses.dataclass(frozen=True)
class VaeConfig:
  """Sizes of an autoencoder; the defaults are Stable Diffusion's.

  Attributes:
    channels: channels of images.
    latent_channels: channels C of latents.
    widths: channels of each block, from the image inwards.
    layers: residual layers per block of the encoder; the decoder has one more.
    norm_groups: groups of channels that share a norm.
    scaling_factor: latents are (z - shift_factor) * scaling_factor.
    shift_factor: shift of latents, see scaling_factor.
    quant_conv: whether a 1x1 convolution follows the encoder.
    post_quant_conv: whether a 1x1 convolution precedes the decoder.
    mid_attention: whether the middle has a layer of attention.
    dtype: dtype of the convolutions, "float32" or "bfloat16"; norms and softmax
      are float32.

  Raises:
    ValueError: if a value is invalid; names it.
  """

  channels: int = 3
  latent_channels: int = 4
  widths: tuple[int, ...] = (128, 256, 512, 512)
  layers: int = 2
  norm_groups: int = 32
  scaling_factor: float = 0.18215
  shift_factor: float = 0.0
  quant_conv: bool = True
  post_quant_conv: bool = True
  mid_attention: bool = True
  dtype: str = "float32"

  def __post_init__(self):
    for name in ("channels", "latent_channels", "layers", "norm_groups"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} = {getattr(self, name)} must be positive")
    invalid = [w for w in self.widths if w < 1 or w % self.norm_groups]
    if invalid or not self.widths:
      raise ValueError(
        f"widths = {self.widths}: expected one or more multiples of "
        f"norm_groups = {self.norm_groups}"
      )
    if not (math.isfinite(self.scaling_factor) and self.scaling_factor > 0):
      raise ValueError(
        f"scaling_factor = {self.scaling_factor} must be positive; 1 does "
        "not scale latents"
      )
    if self.dtype not in DTYPES:
      raise ValueError(f"dtype {self.dtype!r}: use one of {', '.join(DTYPES)}")

  @property
  def factor(self) -> int:
    """Pixels per latent along a side."""
    return 2 ** (len(self.widths) - 1)


_SIXTEEN_CHANNELS = VaeConfig(
  latent_channels=16, quant_conv=False, post_quant_conv=False
)
PUBLISHED = {
  "sd": VaeConfig(),
  "sdxl": VaeConfig(scaling_factor=0.13025),
  "sd3": dataclasses.replace(
    _SIXTEEN_CHANNELS, scaling_factor=1.5305, shift_factor=0.0609
  ),
  "flux": dataclasses.replace(
    _SIXTEEN_CHANNELS, scaling_factor=0.3611, shift_factor=0.1159
  ),
}


class Residual(nn.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))).

  Projects x first if its width changes.
  """

  cfg: VaeConfig
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    groups, dtype = self.cfg.norm_groups, jnp.dtype(self.cfg.dtype)
    y = nn.silu(GroupNorm(groups, name="first_norm")(x))
    y = Conv(self.width, dtype, name="first")(y)
    y = nn.silu(GroupNorm(groups, name="second_norm")(y))
    y = Conv(self.width, dtype, name="second")(y)
    if x.shape[-1] != self.width:
      x = Conv(self.width, dtype, side=1, name="shortcut")(x)
    return x + y


class Attention(nn.Module):
  """x + out(attend(query, key, value)) of norm(x) with one head."""

  cfg: VaeConfig

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    B, H, W, C = x_BHWC.shape
    linear = functools.partial(
      Einsum,
      "BLD,DE->BLE",
      (C, C),
      (None, None),
      xavier(),
      bias=True,
      dtype=jnp.dtype(self.cfg.dtype),
    )
    y = GroupNorm(self.cfg.norm_groups, name="norm")(x_BHWC)
    y = y.reshape(B, H * W, C)
    heads = [
      linear(name=name)(y)[:, :, None] for name in ("query", "key", "value")
    ]
    one = jnp.ones((B, H * W), jnp.int32)
    y = linear(name="out")(attend_local(*heads, one, one)[:, :, 0])
    return x_BHWC + y.reshape(B, H, W, C)


class Middle(nn.Module):
  """A residual layer, attention, a residual layer."""

  cfg: VaeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = Residual(self.cfg, x.shape[-1], name="residual_0")(x)
    if self.cfg.mid_attention:
      x = Attention(self.cfg, name="attention")(x)
    return Residual(self.cfg, x.shape[-1], name="residual_1")(x)


class Encoder(nn.Module):
  """Images `[B, H, W, channels]` -> mean and log variance `[B, h, w, 2 C]`."""

  cfg: VaeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
    x = Conv(cfg.widths[0], dtype, name="first")(x)
    for i, width in enumerate(cfg.widths):
      for j in range(cfg.layers):
        x = Residual(cfg, width, name=f"block_{i}_residual_{j}")(x)
      if i < len(cfg.widths) - 1:
        x = Conv(width, dtype, size="half", name=f"block_{i}_down")(x)
    x = Middle(cfg, name="middle")(x)
    x = nn.silu(GroupNorm(cfg.norm_groups, name="last_norm")(x))
    x = Conv(2 * cfg.latent_channels, dtype, name="last")(x)
    if cfg.quant_conv:
      x = Conv(2 * cfg.latent_channels, dtype, side=1, name="quant")(x)
    return x


class Decoder(nn.Module):
  """Latents `[B, h, w, C]`, not scaled -> images `[B, H, W, channels]`."""

  cfg: VaeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
    if cfg.post_quant_conv:
      x = Conv(cfg.latent_channels, dtype, side=1, name="post_quant")(x)
    x = Conv(cfg.widths[-1], dtype, name="first")(x)
    x = Middle(cfg, name="middle")(x)
    for i, width in enumerate(cfg.widths[::-1]):
      for j in range(cfg.layers + 1):
        x = Residual(cfg, width, name=f"block_{i}_residual_{j}")(x)
      if i < len(cfg.widths) - 1:
        x = Conv(width, dtype, size="double", name=f"block_{i}_up")(x)
    x = nn.silu(GroupNorm(cfg.norm_groups, name="last_norm")(x))
    return Conv(cfg.channels, dtype, name="last")(x)


@functools.cache
def boxed_shapes(cfg: VaeConfig) -> Params:
  """Shapes of the parameters, boxed with their logical axes.

  Tracing is slow, so callers share the result; do not change it.
  """
  key, side = jax.random.key(0), cfg.factor
  init = {
    "encoder": (Encoder(cfg), jnp.zeros((1, side, side, cfg.channels))),
    "decoder": (Decoder(cfg), jnp.zeros((1, 1, 1, cfg.latent_channels))),
  }
  return {
    name: jax.eval_shape(network.init, key, x)["params"]
    for name, (network, x) in init.items()
  }


def moments(
  cfg: VaeConfig, params: Params, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The normal distribution of z given images; its values are independent.

  Args:
    cfg: config of the network.
    params: parameters of the network.
    images: `f32[B, H, W, channels]` in [-1, 1].

  Returns:
    Mean and log variance, `f32[B, h, w, C]` each.
  """
  x = Encoder(cfg).apply({"params": params["encoder"]}, images)
  mean, logvar = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return mean, jnp.clip(logvar, *LOGVAR)


def decode(cfg: VaeConfig, params: Params, z: jax.Array) -> jax.Array:
  """Images of z `f32[B, h, w, C]`: `f32[B, H, W, channels]`, not clipped."""
  x = Decoder(cfg).apply({"params": params["decoder"]}, z)
  return x.astype(jnp.float32)
