"""Prompts as the numbers that a network reads: codes, or features.

S words, K numbers a word; of a frozen language model S tokens, E features each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lumina_jax.model.network import Network
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling.presets import DIFFUSERS

if TYPE_CHECKING:
  from lumina_jax.pipeline import LuminaPipeline

Spelled = list[tuple[np.ndarray, np.ndarray]]  # (prompt, negative) of each.
# Prompts and as many negative prompts, or None if nothing is guided.
Spell = Callable[[Sequence[str], Sequence[str] | None], Spelled]
MULTIPLE = 8  # Of tokens, that diffusers pads prompts to.


@dataclasses.dataclass(frozen=True)
class Speller:
  """Spells prompts.

  Attributes:
    network: that will read them.
    encode: captions -> features `f32[S_n, E]` of each; None = the network's own
      encoder or classes.
    clean: as `how` in `cleaned`.
    most: tokens of a caption that count; None = all that are encoded.
    like_diffusers: whether a negative prompt is never cleaned, and ends where
      the longest prompt of the call does, padding included.
  """

  network: Network
  encode: Callable[[Sequence[str]], list[np.ndarray]] | None = None
  clean: bool | None = None
  most: int | None = None
  like_diffusers: bool = False

  def __call__(
    self, prompts: Sequence[str], negatives: Sequence[str] | None
  ) -> Spelled:
    """Spells each prompt and each negative prompt.

    Without negative prompts, which no guidance needs, each stands for its own.

    Raises:
      ValueError: if there is nothing to spell with, or no such class.
    """
    captions = cleaned(prompts, self.clean)
    if negatives is not None:
      clean = None if self.like_diffusers else self.clean
      captions += cleaned(negatives, clean)
    if not self.network.frozen_text or self.encode is None:
      spelled = map(self.network.tokenize, captions)
    else:
      spelled = self.encode(captions)
    spelled = [codes[: self.most] for codes in spelled]
    text = spelled[: len(prompts)]
    negative = spelled[len(prompts) :] if negatives is not None else text
    if self.like_diffusers:
      negative = _cut(text, negative)
    return list(zip(text, negative, strict=True))


def _cut(
  text: list[np.ndarray], negative: list[np.ndarray]
) -> list[np.ndarray]:
  end = -(-max(map(len, text)) // MULTIPLE) * MULTIPLE
  return [codes[:end] for codes in negative]


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
  spell: Speller

  def __call__(
    self, prompts: Sequence[str], negatives: Sequence[str] | None
  ) -> Spelled:
    """The features, whatever the prompts.

    Raises:
      ValueError: if there is nothing to spell a negative prompt with.
    """
    negative = self.features if negatives is None else self.negative
    if negative is None:
      if self.spell.encode is None:
        raise ValueError(
          "negative_prompt_embeds is missing, and this pipeline has no text "
          "encoder for negative_prompt: pass it, or guidance_scale=1"
        )
      spell = self.spell
      if spell.like_diffusers:  # Here they stand for the prompts.
        spell = dataclasses.replace(spell, clean=None, like_diffusers=False)
      negative = [minus for minus, _ in spell(negatives, None)]
      if self.spell.like_diffusers:
        negative = _cut(self.features, negative)
    return list(zip(self.features, negative, strict=True))


def speller(
  pipe: LuminaPipeline,
  compatibility: str | None = None,
  clean_caption: bool | None = None,
  max_sequence_length: int | None = None,
) -> Speller:
  """What spells the prompts of a call, with the parts of a pipeline.

  Args:
    pipe: the pipeline.
    compatibility: preset of the call.
    clean_caption: as in `cleaned`; the preset cleans unless told otherwise.
    max_sequence_length: tokens that count; None = as the network was trained.

  Raises:
    ValueError: for a length that is none, or more than the encoder reads.
  """
  encoder, like_diffusers = pipe.text_encoder, compatibility == DIFFUSERS
  if clean_caption is None and like_diffusers:
    clean_caption = True
  most = getattr(pipe.network.text_encoder, "max_tokens", None)
  if max_sequence_length is not None and not (
    0 < max_sequence_length <= (most or max_sequence_length)
  ):
    limit = f" to {most}, which the network was trained with" if most else ""
    raise ValueError(
      f"max_sequence_length = {max_sequence_length}: from 1{limit}"
    )

  def encode(captions):
    if pipe.one_at_a_time and not encoder.knows(captions):
      pipe.part.free()
    with pipe.devices():
      features = encoder.encode(captions)
    if pipe.one_at_a_time:
      encoder.free()
    return features

  return Speller(
    pipe.network,
    encode if encoder else None,
    # The number of a class is no text.
    clean_caption if pipe.network.text_encoder else None,
    max_sequence_length,
    like_diffusers,
  )


def choose(
  spell: Speller,
  prompt: Any,
  negative_prompt: Any,
  plus: tuple[Any, Any],
  minus: tuple[Any, Any],
) -> tuple[Any, Spell]:
  """Prompts and what spells them, or what stands for both.

  Args:
    spell: for prompts.
    prompt: of the call.
    negative_prompt: likewise.
    plus: features in place of prompts and their mask, None each.
    minus: likewise of negative prompts.

  Raises:
    ValueError: if something is said twice, or features do not fit.
  """
  (embeds, _), (negative_embeds, _) = plus, minus
  if embeds is None:
    if negative_embeds is not None:
      raise ValueError("negative_prompt_embeds without prompt_embeds")
    return prompt, spell
  if prompt is not None:
    raise ValueError("prompt and prompt_embeds: give one of them")
  if negative_embeds is not None and negative_prompt:
    raise ValueError(
      "negative_prompt and negative_prompt_embeds: give one of them"
    )
  found = given(spell.network, spell, (*plus, *minus))
  return [""] * len(found.features), found


def given(network: Network, spell: Speller, embeds: Sequence[Any]) -> Given:
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
