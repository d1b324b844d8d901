"""Options of the optimizer."""

import dataclasses
import re

from lumina_jax.files import schema
from lumina_jax.files.suggest import check_name

OPTIMIZERS = ("adamw", "muon")
DECAYS = ("constant", "cosine", "wsd")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How parameters are updated.

  Attributes:
    learning_rate: peak of the schedule.
    warmup_steps: length of the linear warm-up from 0 to the peak.
    decay: "constant" after the warm-up, "cosine" to the last step, or "wsd"
      (warm-up, stable, decay); see `training.schedule`.
    b1: decay of AdamW's first moment.
    b2: decay of AdamW's second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled weight decay (Loshchilov and Hutter 2019).
    clip: largest global L2 norm of the gradients of trainable parameters.
    ema_decay: decay of the average of parameters that samples use. It warms up
      as min(ema_decay, (1 + step) / (10 + step)) for the sake of short runs.
    name: "adamw", or "muon" for the hidden matrices of the blocks with AdamW
      for the rest; see `training.muon`.
    momentum: decay of Muon's momentum.
    final_share: share of the peak that "cosine" and "wsd" end at.
    decay_steps: number of the last steps, in which "wsd" decays.
    decay_vectors: whether weight decay also applies to scales, biases, gates
      and learnt tokens, as in the original, or to matrices and tables only.
    groups: (pattern, factor of the learning rate, weight decay) of each group.
      A group holds the parameters whose name, e.g.
      "backbone/blocks/attention/query/kernel", contains a match of the regular
      expression; the first match wins.
    frozen: patterns of parameters that stay as they are. They have no moments,
      and clipping ignores their gradients.
  """

  learning_rate: float
  warmup_steps: int
  decay: str
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip: float
  ema_decay: float
  name: str = "adamw"
  momentum: float = 0.95
  final_share: float = 0.0
  decay_steps: int = 0
  decay_vectors: bool = True
  groups: tuple[tuple[str, float, float], ...] = ()
  frozen: tuple[str, ...] = ()

  def __post_init__(self):
    for name in ("groups", "frozen"):
      if isinstance(getattr(self, name), str):
        raise ValueError(f"{name} = {getattr(self, name)!r}: must be a list")
    object.__setattr__(self, "groups", tuple(map(tuple, self.groups)))
    object.__setattr__(self, "frozen", tuple(self.frozen))
    check_name("name", self.name, OPTIMIZERS)
    schema.check_positive(self, "learning_rate", "eps", "clip")
    for name in ("b1", "b2", "ema_decay", "momentum"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f"{name} = {getattr(self, name)}: must be at least 0 and below 1"
        )
    self._check_schedule()
    self._check_groups()

  @property
  def patterns(self) -> tuple[str, ...]:
    """The patterns of all groups and of frozen parameters."""
    return (*(group[0] for group in self.groups), *self.frozen)

  def _check_schedule(self) -> None:
    check_name("decay", self.decay, DECAYS)
    schema.check_share(self, "final_share")
    if self.final_share and self.decay == "constant":
      raise ValueError(
        f"final_share = {self.final_share}: decay 'constant' never falls; use "
        "'cosine' or 'wsd'"
      )
    if (self.decay == "wsd") != (self.decay_steps > 0):
      raise ValueError(
        f"decay_steps = {self.decay_steps} with decay {self.decay!r}: decay "
        "'wsd' needs a positive number, the others 0"
      )

  def _check_groups(self) -> None:
    for group in self.groups:
      if len(group) != 3:
        raise ValueError(
          f"groups: {group!r} must be (pattern, factor of the learning rate, "
          "weight decay)"
        )
      _, factor, decay = group
      if not factor > 0 or decay < 0:
        raise ValueError(
          f"groups: {group!r} needs a positive factor and a weight decay that "
          "is not negative; to freeze parameters, use frozen"
        )
    for pattern in self.patterns:
      try:
        re.compile(pattern)
      except (re.error, TypeError) as error:
        raise ValueError(f"pattern {pattern!r}: {error}") from error
