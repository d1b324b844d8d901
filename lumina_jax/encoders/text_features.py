"""Config of the text features that a network reads.

A frozen language model computes them before the network runs, so it need not be
in memory while the network trains or samples.
"""

import dataclasses

from lumina_jax.encoders.caption_cleaning import CLEANERS
from lumina_jax.encoders.language_config import HIDDEN
from lumina_jax.files import schema

CLEANING = tuple(CLEANERS)


@dataclasses.dataclass(frozen=True)
class TextFeaturesConfig:
  """How captions become features of a frozen language model.

  A network works with the features that it was trained with.

  Attributes:
    width: width E of the features and of the language model.
    hidden: hidden state that they are: "last", after the final norm, or
      "penultimate", the input of the last layer.
    max_tokens: largest number of tokens of a caption; the rest is cut off with
      a warning.
    add_eos: whether an end-of-sequence token follows the caption.
    cleaning: how captions are cleaned: "" not at all, "strip" to lower case
      without outer blanks, "clean" also without remains of web pages.
    system_prompt: text before every caption.

  Raises:
    ValueError: if a value is invalid; names it.
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
    schema.check_positive(self, "width", "max_tokens")

  @property
  def code_width(self) -> int:
    """K: values that represent one token, its features."""
    return self.width


# The published networks were trained with LLaMA-2 (Flag-DiT) and Gemma
# (Next-DiT).
LLAMA = dict(hidden="last", max_tokens=128, add_eos=True)
GEMMA = dict(hidden="penultimate", max_tokens=256, add_eos=False)
