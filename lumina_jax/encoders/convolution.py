"""The layers that autoencoders of pictures are made of: convolution and norm.

B frames, H rows, W columns, C channels; channels come last.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.backbone.layers import ones, parameter, xavier, zeros

EPS = 1e-6  # of every norm


class Conv(nn.Module):
  """A square convolution with bias.

  Attributes:
    width: channels that leave.
    dtype: what to compute in; the parameter is float32.
    side: of the kernel, 1 or 3.
    size: "same"; "half" takes every other place and pads after the last row and
      column only, as those who trained these networks did; "double" repeats
      every pixel along both sides first.
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
    x, rim = x_BHWC.astype(self.dtype), self.side // 2
    match self.size:
      case "same":
        y = _convolve(x, kernel, [(rim, rim)] * 2)
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


# Which rows of a kernel meet in one old pixel: [new pixel, old pixel, row].
FOLD = np.float32([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
RIM = (1, 0), (0, 1)  # Padding, for each new pixel.


def _convolve_doubled(x, kernel):
  """3 x 3 over repeated pixels, which are never made, for 4/9 of the products.

  Each of the 4 pixels that come of one sees only 2 x 2 of the old ones, so the
  kernel folds to four of 2 x 2.
  """
  B, H, W, _ = x.shape
  kernels = jnp.einsum(
    "mai,nbj,ijCD->mnabCD",
    FOLD,
    FOLD,
    kernel.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,  # These are sums of parameters.
  )
  rows = [
    jnp.stack(
      [_convolve(x, kernels[m, n], [RIM[m], RIM[n]]) for n in (0, 1)], axis=3
    )
    for m in (0, 1)
  ]
  return jnp.stack(rows, axis=2).reshape(B, 2 * H, 2 * W, -1)


class GroupNorm(nn.Module):
  """Norm of groups of channels over the whole picture, in float32.

  (x - mean) / sqrt(var + eps) scale + bias (Wu and He 2018, section 3).
  """

  groups: int

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    B, _, _, C = x_BHWC.shape
    scale = parameter(self, "scale", ones, (C,), (None,))
    bias = parameter(self, "bias", zeros, (C,), (None,))

    def mean(x):  # Over places first: channels lie next to each other.
      x = x.mean(axis=(1, 2)).reshape(B, self.groups, -1)
      x = jnp.repeat(x.mean(axis=-1), C // self.groups, axis=-1)
      return x[:, None, None]

    x = x_BHWC.astype(jnp.float32)
    x = x - mean(x)
    x = x * (jax.lax.rsqrt(mean(x * x) + EPS) * scale) + bias
    return x.astype(x_BHWC.dtype)
