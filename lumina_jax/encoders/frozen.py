"""Text from a frozen language model: encoded before the network ever runs.

The network is handed features rather than codes, so the language model need
not be in memory while it trains or samples.
"""

from __future__ import annotations

import dataclasses

HIDDEN = ("last", "penultimate")
CLEANING = ("", "strip", "clean")


@dataclasses.dataclass(frozen=True)
class FrozenTextConfig:
  """How captions become features; what a network was trained with.

  Attributes:
    width: E of the features, the language model's width.
    hidden: which of its hidden states they are: "last", after the last norm,
      or "penultimate", what enters the last layer.
    max_tokens: of a caption; what follows is cut off, with a warning.
    add_eos: whether an end-of-sequence token follows the caption.
    cleaning: what is done to captions first: "" nothing, "strip" lower case
      and no outer blanks, "clean" also without what web pages leave in them.
    system_prompt: stands before every caption.
  """

  width: int
  hidden: str = "penultimate"
  max_tokens: int = 256
  add_eos: bool = False
  cleaning: str = ""
  system_prompt: str = ""

  def __post_init__(self):
    for name, known in (("hidden", HIDDEN), ("cleaning", CLEANING)):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(f"{name} = {value!r}: use one of {known}")
    if self.width < 1 or self.max_tokens < 1:
      raise ValueError(
        f"width = {self.width} and max_tokens = {self.max_tokens} must be "
        "positive"
      )

  @property
  def code_width(self) -> int:
    """K: what stands for a word is its feature."""
    return self.width


# What the published networks were trained with: LLaMA-2 for Flag-DiT, Gemma
# for Next-DiT.
LLAMA = dict(hidden="last", max_tokens=128, add_eos=True)
GEMMA = dict(hidden="penultimate", max_tokens=256, add_eos=False)
