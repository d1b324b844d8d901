"""Networks that compile in no time."""

import types

import jax.numpy as jnp

from lumina_jax.flow.objective import Objective
from lumina_jax.tokens import per_token


class AffineNetwork:
  """Predicts a x + b t + c, with a load-balancing loss d.

  It has what the loss and the training step need of a `Network`.
  """

  def __init__(
    self, objective: Objective | None = None, balance_weight: float = 0.0
  ):
    self.objective = objective or Objective()
    self.model = types.SimpleNamespace(balance_weight=balance_weight)

  @staticmethod
  def params(value: float = 0.0):
    """Parameters of one value."""
    return {name: jnp.full((), value) for name in "abcd"}

  def encode(self, params, condition):
    return condition

  def prediction(self, params, tokens, condition):
    t = per_token(condition.time[..., None], tokens.segments)
    return params["a"] * tokens.patches + params["b"] * t + params["c"]

  def prediction_and_balance(self, params, tokens, condition):
    assert self.model.balance_weight
    return self.prediction(params, tokens, condition), params["d"]
