"""Prompts as the numbers that a network reads: codes, or features.

S words, K numbers a word; of a frozen language model S tokens, E features each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lumina_jax import inputs
from lumina_jax.network import Network

Spelled = list[tuple[np.ndarray, np.ndarray]]  # (prompt, negative) of each.
# Prompts and negative prompts, as many of the one as of the other.
Spell = Callable[[Sequence[str], Sequence[str]], Spelled]
MULTIPLE = 8  # Of tokens, that diffusers pads prompts to.


@dataclasses.dataclass(frozen=True)
class Speller:
  """Spells prompts.

  Attributes:
    network: that will read them.
    encode: captions -> features `f32[S_n, E]` of each; None = the network's own
      encoder or classes.
    most: tokens of a caption that count; None = all that are encoded.
    like_diffusers: whether a negative prompt ends where the longest prompt of
      the call does, padding included.
  """

  network: Network
  encode: Callable[[Sequence[str]], list[np.ndarray]] | None = None
  most: int | None = None
  like_diffusers: bool = False

  def __call__(
    self, prompts: Sequence[str], negatives: Sequence[str]
  ) -> Spelled:
    """Spells each prompt and each negative prompt.

    Raises:
      ValueError: if there is nothing to spell with, or no such class.
    """
    if not self.network.frozen_text or self.encode is None:
      spelled = map(self.network.tokenize, (*prompts, *negatives))
    else:
      spelled = self.encode([*prompts, *negatives])
    spelled = [codes[: self.most] for codes in spelled]
    text, negative = spelled[: len(prompts)], spelled[len(prompts) :]
    if self.like_diffusers:
      longest = max(map(len, text))
      end = -(-longest // MULTIPLE) * MULTIPLE
      negative = [codes[:end] for codes in negative]
    return list(zip(text, negative, strict=True))


@dataclasses.dataclass(frozen=True)
class Given:
  """Features that the caller brings in place of prompts.

  Attributes:
    features: of each prompt, `f32[S_n, E]`.
    negative: likewise; None = `spell` does it.
    spell: for negative prompts.
  """

  features: list[np.ndarray]
  negative: list[np.ndarray] | None
  spell: Spell

  def __call__(
    self, prompts: Sequence[str], negatives: Sequence[str]
  ) -> Spelled:
    """The features, whatever the prompts."""
    negative = self.negative
    if negative is None:
      negative = [minus for _, minus in self.spell([], negatives)]
    return list(zip(self.features, negative, strict=True))


def given(network: Network, spell: Spell, embeds: Sequence[Any]) -> Given:
  """Checks features that the caller brings.

  Args:
    network: that will read them.
    spell: for what they do not bring.
    embeds: prompt_embeds, prompt_attention_mask, negative_prompt_embeds,
      negative_prompt_attention_mask, as in diffusers.

  Raises:
    ValueError: naming what does not fit.
  """
  if not network.frozen_text:
    raise ValueError("prompt_embeds: this network encodes prompts itself")
  plus, mask, minus, minus_mask = embeds
  width = network.code_width
  features = inputs.features(plus, mask, width, "prompt_embeds")
  if not features:
    raise ValueError("prompt_embeds is empty")
  negative = None
  if minus is not None:
    name = "negative_prompt_embeds"
    negative = inputs.features(minus, minus_mask, width, name)
    if len(negative) != len(features):
      raise ValueError(
        f"{name} has {len(negative)} rows for {len(features)} of prompt_embeds"
      )
  return Given(features, negative, spell)


def side_by_side(spelled: Spelled) -> tuple[np.ndarray, ...]:
  """Features of unlike lengths as arrays of one, with their masks.

  Returns:
    `f32[N, S, E]`, zero beyond each, and `bool[N, S]`, of the prompts; then of
    the negative prompts.
  """
  longest = max(len(row) for pair in spelled for row in pair)
  found = []
  for rows in zip(*spelled, strict=True):
    lengths = np.asarray([len(row) for row in rows])
    found.append(
      np.stack([np.pad(x, ((0, longest - len(x)), (0, 0))) for x in rows])
    )
    found.append(np.arange(longest) < lengths[:, None])
  return tuple(found)


def cleaned(captions: Sequence[str], how: bool | None) -> list[str]:
  """Captions without what web pages leave in them.

  Args:
    captions: to clean.
    how: True for all of that, False for blanks and capitals; None = as is.
  """
  from lumina_jax.encoders import cleaning

  if how is None:
    return list(captions)
  clean = cleaning.clean_caption if how else cleaning.normalize
  return [clean(caption) for caption in captions]
