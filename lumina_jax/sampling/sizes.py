"""Sizes that a pipeline generates, and the size that it was trained on."""

import dataclasses

from data_pipelines import digit_captions
from lumina_jax.files.suggest import check_name

# Extents of latents that a prompt asks for; None = the default for all prompts.
RULES = {"fixed": None, "digits": digit_captions.canvas_size}


@dataclasses.dataclass(frozen=True)
class TrainedSize:
  """The size that a network was trained on last.

  Attributes:
    side: of the square, in latents.
    tokens: of the square, as the original counts them.
    below: whether positions of smaller samples stretch as well. The original's
      Next-DiT leaves them alone, its Flag-DiT and diffusers stretch them.
  """

  side: int
  tokens: int
  below: bool = False

  def __post_init__(self):
    if self.side < 1 or self.tokens < 2:
      raise ValueError(
        f"side = {self.side} and tokens = {self.tokens}: a trained square has "
        "a positive side and at least 2 tokens"
      )


@dataclasses.dataclass(frozen=True)
class SizeConfig:
  """Sizes that a pipeline generates, and the rows that it packs them into.

  Attributes:
    default: extents of the latents along each axis of the medium.
    rule: "fixed" uses the default; "digits" reads rows and columns off prompts.
    ladder: budgets (tokens, words, samples) of a row, smallest first. A call
      uses the first that its largest sample fits; each is one program. A class
      is one word. () allows any size, one sample a row, with tokens rounded up
      eight steps an octave.
    rows: rows of a batch; empty ones are padding. On a mesh, rows and tokens
      are rounded up to divide evenly.
    rate: latents per second, of media with an axis in seconds.
    trained: the trained size; None = each sample has a natural size, by the
      rule, or the network has no rule for sizes beyond those of training.
  """

  default: tuple[int, ...]
  rule: str = "fixed"
  ladder: tuple[tuple[int, int, int], ...] = ()
  rows: int = 1
  rate: float = 0.0
  trained: TrainedSize | None = None

  def __post_init__(self):
    ladder = tuple(tuple(rung) for rung in self.ladder)
    object.__setattr__(self, "ladder", ladder)
    object.__setattr__(self, "default", tuple(self.default))
    check_name("size rule", self.rule, RULES)
    if not self.default or min(self.default) < 1:
      raise ValueError(f"default = {self.default}: must be positive extents")
    if any(len(rung) != 3 or min(rung) < 1 for rung in ladder):
      raise ValueError(
        f"ladder = {ladder}: each budget is (tokens, words, samples)"
      )
    if list(ladder) != sorted(ladder):
      raise ValueError(f"ladder = {ladder}: must rise")
    if self.rows < 1:
      raise ValueError(f"rows = {self.rows}: must be at least 1")
    if self.rate < 0:
      raise ValueError(f"rate = {self.rate}: must not be negative")

  def extents(self, prompt: str) -> tuple[int, ...]:
    """Extents of the latents of a prompt where a call names none."""
    rule = RULES[self.rule]
    return rule(prompt) if rule else self.default

  @property
  def known(self) -> bool:
    """Whether the trained size of every sample is known."""
    return self.trained is not None or RULES[self.rule] is not None
