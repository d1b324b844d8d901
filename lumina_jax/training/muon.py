"""Muon: orthogonalised momentum for the hidden matrices of the blocks.

Jordan et al. 2024 ("Muon: An optimizer for hidden layers in neural networks").
Which parameters use which optimizer, and why:

Attention and feed-forward matrices, those of experts included: Muon. They map
  one hidden vector to another, the case that Muon is derived for.
patch_embed, final, label_embed and the text encoder: AdamW. Jordan et al. find
  it better for the first and last layer and for tables, of which a gradient
  touches few rows.
modulation, time_embed, text_pool: AdamW. Their input is one vector per sample,
  which limits the rank of a gradient to the number of samples; Muon would
  amplify the rounding errors in all other directions.
Routers: AdamW. They are classifiers with a handful of outputs.
Scales, biases, gates, learnt tokens: AdamW. They are vectors.
"""

import re
from typing import Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers

# Liu et al. 2025 ("Muon is scalable for LLM training", equation 4): updates
# with the root mean square of AdamW's, so that its learning rates carry over.
RMS = 0.2


class MatrixAxes(NamedTuple):
  """How the axes of a kernel form matrices.

  Attributes:
    stacked: number of leading axes that stack kernels: layers, then experts.
    inputs: number of input axes after them; all others are output axes.
  """

  stacked: int
  inputs: int

  def split(self, ndim: int) -> MuonDimensionNumbers:
    """The input and output axes; heads and their channels form one side."""
    split = self.stacked + self.inputs
    return MuonDimensionNumbers(
      tuple(range(self.stacked, split)), tuple(range(split, ndim))
    )


MATRICES = {
  r"blocks/attention/(text_)?(query|key|value)/kernel$": MatrixAxes(1, 1),
  r"blocks/attention/out/kernel$": MatrixAxes(1, 2),
  r"blocks/feed_forward(_\w+)?/(gate|up|down)/kernel$": MatrixAxes(1, 1),
  r"blocks/feed_forward(_\w+)?/(gate|up|down)_kernel$": MatrixAxes(2, 1),
}


def matrix_axes(name: str) -> MatrixAxes | None:
  """The matrix axes of a parameter, or None if it is no hidden matrix."""
  for pattern, axes in MATRICES.items():
    if re.search(pattern, name):
      return axes
  return None


def muon(
  learning_rate: optax.Schedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """W <- W - lr (0.2 sqrt(max(m, n)) O + wd W), for hidden matrices m x n.

  O is the Nesterov momentum of the gradients, with singular values near 1 after
  five Newton-Schulz iterations, separately for each layer and expert.

  Args:
    learning_rate: a function of the number of updates.
    momentum: decay of the momentum.
    weight_decay: decoupled weight decay, as AdamW's.
  """
  return optax.contrib.muon(
    learning_rate,
    beta=momentum,
    weight_decay=weight_decay,
    muon_weight_dimension_numbers=dimension_numbers,
    consistent_rms=RMS,
  )


def dimension_numbers(params: Any) -> Any:
  """Maps a tree of hidden matrices to optax's dimension numbers of each.

  Raises:
    ValueError: if a parameter is no hidden matrix.
  """

  def split(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    axes = matrix_axes(name)
    if axes is None:
      raise ValueError(f"{name} is no hidden matrix: Muon cannot update it")
    return axes.split(x.ndim)

  return jax.tree_util.tree_map_with_path(split, params)
