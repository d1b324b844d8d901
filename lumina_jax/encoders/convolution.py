"""Layers of image autoencoders: convolution and group norm.

B frames, H rows, W columns, C channels; channels come last.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.backbone.layers import ones, parameter, xavier, zeros

EPS = 1e-6  # Of every norm.


class Conv(nn.Module):
  """A square convolution with bias.

  Attributes:
    width: output channels.
    dtype: dtype of the computation; parameters are float32.
    side: side of the kernel, 1 or 3.
    size: size of the output: "same"; "half", with stride 2 and padding only
      after the last row and column, as in the published networks; "double",
      which repeats every pixel along both sides first.
  """

  width: int
  dtype: jnp.dtype
  side: int = 3
  size: str = "same"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    shape = (self.side, self.side, x_BHWC.shape[-1], self.width)
    kernel = parameter(self, "kernel", xavier(inputs=3), shape, (None,) * 4)
    bias = parameter(self, "bias", zeros, shape[-1:], (None,))
    x, pad = x_BHWC.astype(self.dtype), self.side // 2
    match self.size:
      case "same":
        y = _convolve(x, kernel, [(pad, pad)] * 2)
      case "half":
        y = _convolve(x, kernel, [(0, 1)] * 2, stride=2)
      case "double":
        y = _convolve_doubled(x, kernel)
    y = y + bias.astype(self.dtype)
    return nn.with_logical_constraint(y, ("act_batch", None, None, None))


def _convolve(x, kernel, padding, stride=1):
  return jax.lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    window_strides=(stride, stride),
    padding=padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


# Rows of a kernel that meet in one input pixel: [output, input, row].
FOLD = np.float32([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
PADDING = (1, 0), (0, 1)  # For each output pixel.


def _convolve_doubled(x, kernel):
  """Convolves repeated pixels with 3 x 3, at 4/9 of the products.

  Each of the 4 output pixels of an input pixel depends on 2 x 2 input pixels,
  so the kernel folds into four kernels of 2 x 2. Nothing is repeated.
  """
  B, H, W, _ = x.shape
  kernels = jnp.einsum(
    "mai,nbj,ijCD->mnabCD",
    FOLD,
    FOLD,
    kernel.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,  # Sums of parameters.
  )
  rows = [
    jnp.stack(
      [_convolve(x, kernels[m, n], [PADDING[m], PADDING[n]]) for n in (0, 1)],
      axis=3,
    )
    for m in (0, 1)
  ]
  return jnp.stack(rows, axis=2).reshape(B, 2 * H, 2 * W, -1)


class GroupNorm(nn.Module):
  """Norm of groups of channels over the whole image, in float32.

  (x - mean) / sqrt(var + eps) scale + bias (Wu and He 2018, section 3).
  """

  groups: int

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    B, _, _, C = x_BHWC.shape
    scale = parameter(self, "scale", ones, (C,), (None,))
    bias = parameter(self, "bias", zeros, (C,), (None,))

    def mean(x):  # Over places first: channels are contiguous.
      x = x.mean(axis=(1, 2)).reshape(B, self.groups, -1)
      x = jnp.repeat(x.mean(axis=-1), C // self.groups, axis=-1)
      return x[:, None, None]

    x = x_BHWC.astype(jnp.float32)
    x = x - mean(x)
    x = x * (jax.lax.rsqrt(mean(x * x) + EPS) * scale) + bias
    return x.astype(x_BHWC.dtype)
