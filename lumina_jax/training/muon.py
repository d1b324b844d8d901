"""Muon: momentum, made orthogonal, for the hidden matrices of the blocks.

Jordan et al. 2024 ("Muon: An optimizer for hidden layers in neural networks").
What goes where, and why:

matrices of attention and of feed-forwards, of every expert: Muon. They map one
  hidden vector to another, the case that it is derived for.
patch_embed and final, the first and the last layer; label_embed and all of the
  text encoder, which are tables or read by place: AdamW, as Jordan et al. found
  better. Of a table a gradient touches few rows.
modulation, time_embed, text_pool: AdamW. Their inputs are one vector a sample,
  so that the rank of a gradient is the number of samples at the most; Muon
  would blow the rest up from rounding.
routers: AdamW. They are classifiers, their outputs a handful of experts.
scales, biases, gates, learnt tokens: AdamW. Vectors have nothing to be made
  orthogonal.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

# Liu et al. 2025 ("Muon is scalable for LLM training", equation 4): updates of
# a root mean square like AdamW's, so that its learning rates carry over.
RMS = 0.2


class Matrix(NamedTuple):
  """How the axes of a kernel make a matrix.

  Attributes:
    stacked: axes that number kernels, first: layers, then experts.
    inputs: axes of the input, after them; the rest are of the output.
  """

  stacked: int
  inputs: int

  def axes(self, ndim: int) -> MuonDimensionNumbers:
    """The same as optax says it; heads and their channels are one axis."""
    split = self.stacked + self.inputs
    return MuonDimensionNumbers(
      tuple(range(self.stacked, split)), tuple(range(split, ndim))
    )


MATRICES = {
  r"blocks/attention/(text_)?(query|key|value)/kernel$": Matrix(1, 1),
  r"blocks/attention/out/kernel$": Matrix(1, 2),
  r"blocks/feed_forward(_\w+)?/(gate|up|down)/kernel$": Matrix(1, 1),
  r"blocks/feed_forward(_\w+)?/(gate|up|down)_kernel$": Matrix(2, 1),
}


def matrix(name: str) -> Matrix | None:
  """How a parameter is a hidden matrix; None = it is none."""
  for pattern, how in MATRICES.items():
    if re.search(pattern, name):
      return how
  return None


def muon(
  learning_rate: optax.Schedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """W <- W - lr (0.2 sqrt(max(m, n)) O + wd W), for hidden matrices m x n.

  O is the Nesterov momentum of the gradients with singular values near 1, by
  five Newton-Schulz iterations, for every layer and expert by itself.

  Args:
    learning_rate: by updates done.
    momentum: decay of the momentum.
    weight_decay: decoupled, as AdamW's.
  """
  return optax.chain(
    scale_by_muon(beta=momentum, weight_dimension_numbers=dimension_numbers),
    optax.stateless(_scale),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )


def dimension_numbers(params: Any) -> Any:
  """A tree of hidden matrices -> the same of optax's dimension numbers."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: _matrix(path).axes(x.ndim), params
  )


def _scale(updates: Any, _: Any) -> Any:
  def scale(path, x):
    inputs, outputs = _matrix(path).axes(x.ndim)
    sides = (math.prod(x.shape[i] for i in axes) for axes in (inputs, outputs))
    return RMS * math.sqrt(max(sides)) * x

  return jax.tree_util.tree_map_with_path(scale, updates)


def _matrix(path: tuple[Any, ...]) -> Matrix:
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  how = matrix(name)
  assert how is not None, f"{name} is no hidden matrix"
  return how
