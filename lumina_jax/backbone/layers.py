"""Layers with parameters: projections, norms, SwiGLU, embedders.

One call declares a parameter's shape, logical axes and initialiser.
B rows, L tokens, D width, F feed-forward, N samples a row, C cond width.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

Init = Callable[..., jax.Array]

zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()
normal = nn.initializers.normal(0.02)


def xavier(inputs: int = 1, stacked: int = 0) -> Init:
  """Xavier uniform for a kernel of `inputs` input axes, then output axes.

  Fans are products over all input and all output axes, so a kernel split into
  heads is initialised like the matrix that it represents. The first `stacked`
  axes number separate kernels, e.g. those of experts.
  """

  def init(key, shape, dtype=jnp.float32):
    one = shape[stacked:]
    fans = math.prod(one[:inputs]) + math.prod(one[inputs:])
    bound = math.sqrt(6 / fans)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Einsum(nn.Module):
  """A linear map written as an einsum equation.

  Attributes:
    equation: "input,kernel->output" for jnp.einsum.
    shape: shape of the kernel.
    axes: logical axes of the kernel, one name per dimension.
    init: initialiser of the kernel.
    bias: whether to add a zero-initialised bias along the last axis.
    dtype: dtype of the computation; parameters are float32.
  """

  equation: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: Init
  bias: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = parameter(self, "kernel", self.init, self.shape, self.axes)
    kernel = kernel.astype(self.dtype)
    y = jnp.einsum(self.equation, x.astype(self.dtype), kernel)
    if self.bias:
      bias = parameter(self, "bias", zeros, self.shape[-1:], self.axes[-1:])
      y = y + bias.astype(self.dtype)
    return y


def parameter(
  module: nn.Module,
  name: str,
  init: Init,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
) -> jax.Array:
  """Declares a float32 parameter with its logical axes."""
  return module.param(
    name, nn.with_logical_partitioning(init, axes), shape, jnp.float32
  )


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps), optionally times a learnt scale.

  Computes in float32 and returns x's dtype (Zhang and Sennrich 2019, eq. 4).

  Attributes:
    eps: added to the mean square.
    axis: logical axis of the scale.
    scale: whether there is a learnt scale.
  """

  eps: float
  axis: str = "norm"
  scale: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    if self.scale:
      y = y * parameter(self, "scale", ones, x.shape[-1:], (self.axis,))
    return y.astype(x.dtype)


class LayerNorm(nn.Module):
  """LayerNorm over the last axes jointly.

  Computes in float32 and returns x's dtype.

  Attributes:
    axes: logical names of the normalised axes, e.g. ("heads", "head_dim").
    affine: whether there are a learnt scale and bias, which span these axes.
    eps: added to the variance; PyTorch's default. Published networks use
      another value in the last layer only.
  """

  axes: tuple[str | None, ...] = ("norm",)
  affine: bool = True
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    over = tuple(range(-len(self.axes), 0))
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=over, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=over, keepdims=True) + self.eps)
    if self.affine:
      shape = x.shape[-len(self.axes) :]
      y = y * parameter(self, "scale", ones, shape, self.axes)
      y = y + parameter(self, "bias", zeros, shape, self.axes)
    return y.astype(x.dtype)


class SwiGLU(nn.Module):
  """down(silu(gate(x)) * up(x)) (Shazeer 2020, section 2)."""

  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    width = x_BLD.shape[-1]
    shape, axes = (width, self.hidden), ("embed", "mlp")

    def up(name):
      equation = "BLD,DF->BLF"
      return Einsum(
        equation, shape, axes, xavier(), dtype=self.dtype, name=name
      )(x_BLD)

    h_BLF = nn.silu(up("gate")) * up("up")
    h_BLF = nn.with_logical_constraint(
      h_BLF, ("act_batch", "act_length", "act_mlp")
    )
    return Einsum(
      "BLF,FD->BLD",
      shape[::-1],
      axes[::-1],
      xavier(),
      dtype=self.dtype,
      name="down",
    )(h_BLF)


class TimeEmbedder(nn.Module):
  """Time `f32[B, N]` -> `f32[B, N, C]`: sinusoids, then a two-layer MLP.

  Sinusoids are [cos, sin](t exp(-ln(10000) k / 128)), k < 128, in float32.
  """

  width: int
  frequencies: int = 128

  @nn.compact
  def __call__(self, time: jax.Array) -> jax.Array:
    k = jnp.arange(self.frequencies) / self.frequencies
    angle = time.astype(jnp.float32)[..., None] * jnp.exp(-math.log(1e4) * k)
    x = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    x = Einsum(
      "BNT,TC->BNC",
      (2 * self.frequencies, self.width),
      (None, "cond"),
      normal,
      bias=True,
      name="first",
    )(x)
    # The original's 0.02 at its width of 1024; larger for narrower networks,
    # where the time would have little effect at first.
    spread = nn.initializers.normal(0.02 * math.sqrt(1024 / self.width))
    return Einsum(
      "BNC,CE->BNE",
      (self.width, self.width),
      ("cond_in", "cond"),
      spread,
      bias=True,
      name="second",
    )(nn.silu(x))


class TextPooler(nn.Module):
  """Mean of a sample's text features, normed and projected to `f32[B, N, C]`.

  Attributes:
    width: C.
    init: initialiser of the projection; with zeros, text does not modulate at
      first.
  """

  width: int
  init: Init = zeros

  @nn.compact
  def __call__(
    self, text_BSE: jax.Array, text_segments: jax.Array, samples: int
  ) -> jax.Array:
    member = text_segments[:, None, :] == jnp.arange(1, samples + 1)[:, None]
    member = member.astype(jnp.float32)
    total = jnp.einsum("BNS,BSE->BNE", member, text_BSE.astype(jnp.float32))
    mean = total / jnp.maximum(member.sum(axis=-1, keepdims=True), 1)
    mean = LayerNorm(axes=("text",), name="norm")(mean)
    shape, axes = (text_BSE.shape[-1], self.width), ("text", "cond")
    return Einsum(
      "BNE,EC->BNC", shape, axes, self.init, bias=True, name="project"
    )(mean)


class Modulation(nn.Module):
  """Shifts, scales and gates: `f32[B, N, C]` -> `parts` tensors `[B, N, D]`.

  Linear(SiLU(c)), zero-initialised (adaLN-Zero; Peebles and Xie, section 3.2).
  """

  parts: int
  width: int

  @nn.compact
  def __call__(self, cond_BNC: jax.Array) -> list[jax.Array]:
    cond_width = cond_BNC.shape[-1]
    y = Einsum(
      "BNC,CQ->BNQ",
      (cond_width, self.parts * self.width),
      ("cond_in", "modulation"),
      zeros,
      bias=True,
      name="project",
    )(nn.silu(cond_BNC))
    return jnp.split(y, self.parts, axis=-1)
