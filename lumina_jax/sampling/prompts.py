"""Encodes prompts as codes, or as features of a language model.

S words with K numbers each, or S tokens with E features each.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lumina_jax.encoders.caption_cleaning import clean_caption, normalize
from lumina_jax.flow.schedule import DIFFUSERS
from lumina_jax.model.network import Network
from lumina_jax.sampling import arguments
from lumina_jax.sampling.call import Call
from lumina_jax.sampling.components import Components

Encoded = list[tuple[np.ndarray, np.ndarray]]  # (prompt, negative) for each.
# Prompts and as many negative prompts, or None without guidance -> codes.
Encode = Callable[[Sequence[str], Sequence[str] | None], Encoded]
MULTIPLE = 8  # diffusers pads prompts to a multiple of it.


@dataclasses.dataclass(frozen=True)
class PromptEncoder:
  """Encodes prompts and negative prompts.

  Attributes:
    network: reads the result.
    encode: captions -> features `f32[S_n, E]` of each; None = codes of the
      network's own encoder, or classes.
    clean: how to clean captions, see `cleaned`.
    max_length: tokens of a caption that count; None = all.
    like_diffusers: whether negative prompts stay uncleaned and end where the
      longest prompt of the call does, padding included.
  """

  network: Network
  encode: Callable[[Sequence[str]], list[np.ndarray]] | None = None
  clean: bool | None = None
  max_length: int | None = None
  like_diffusers: bool = False

  def __call__(
    self, prompts: Sequence[str], negatives: Sequence[str] | None
  ) -> Encoded:
    """Encodes each prompt and its negative prompt.

    Without negative prompts each prompt stands for its own.

    Raises:
      ValueError: if there is no encoder, or no such class.
    """
    captions = cleaned(prompts, self.clean)
    if negatives is not None:
      clean = None if self.like_diffusers else self.clean
      captions += cleaned(negatives, clean)
    if not self.network.frozen_text or self.encode is None:
      encoded = map(self.network.tokenize, captions)
    else:
      encoded = self.encode(captions)
    encoded = [codes[: self.max_length] for codes in encoded]
    positive = encoded[: len(prompts)]
    negative = positive if negatives is None else encoded[len(prompts) :]
    if self.like_diffusers:
      negative = _cut_to_longest(positive, negative)
    return list(zip(positive, negative, strict=True))


def prompt_encoder(components: Components, call: Call) -> PromptEncoder:
  """The encoder of a call; "diffusers" cleans captions by default.

  Raises:
    ValueError: for a `max_sequence_length` out of range.
  """
  network, encoder = components.network, components.text_encoder
  clean_caption, max_length = call.clean_caption, call.max_sequence_length
  like_diffusers = call.compatibility == DIFFUSERS
  if clean_caption is None and like_diffusers:
    clean_caption = True
  longest = getattr(network.text_encoder, "max_tokens", None)
  if max_length is not None and not 0 < max_length <= (longest or max_length):
    limit = f" to {longest}, as the network was trained" if longest else ""
    raise ValueError(
      f"max_sequence_length = {max_length}: must be from 1{limit}"
    )

  def encode(captions):
    if components.one_at_a_time and not encoder.is_cached(captions):
      components.weights.free()
    with components.devices():
      features = encoder.encode(captions)
    if components.one_at_a_time:
      encoder.free()
    return features

  return PromptEncoder(
    network,
    encode if encoder else None,
    # The number of a class needs no cleaning.
    clean_caption if network.text_encoder else None,
    max_length,
    like_diffusers,
  )


def given_embeddings(encoder: PromptEncoder, call: Call) -> tuple[int, Encode]:
  """Features that a caller passes in place of prompts.

  Args:
    encoder: of negative prompts, if no features replace them.
    call: the features.

  Returns:
    The number of prompts, and a function that returns the features, whatever
    the prompts.

  Raises:
    ValueError: naming the argument that does not fit.
  """
  network = encoder.network
  if not network.frozen_text:
    raise ValueError("prompt_embeds: this network encodes prompts itself")
  width, negative = network.code_width, None
  positive = arguments.embeddings(
    call.prompt_embeds, call.prompt_attention_mask, width, "prompt_embeds"
  )
  if not positive:
    raise ValueError("prompt_embeds is empty")
  if call.negative_prompt_embeds is not None:
    negative = arguments.embeddings(
      call.negative_prompt_embeds,
      call.negative_prompt_attention_mask,
      width,
      "negative_prompt_embeds",
    )
    if len(negative) != len(positive):
      raise ValueError(
        f"negative_prompt_embeds has {len(negative)} rows for "
        f"{len(positive)} of prompt_embeds"
      )

  def encode(_, negatives):
    found = positive if negatives is None else negative
    if found is None:
      found = _encode_negative(encoder, negatives, positive)
    return list(zip(positive, found, strict=True))

  return len(positive), encode


def _encode_negative(
  encoder: PromptEncoder, negatives: Sequence[str], positive: list[np.ndarray]
) -> list[np.ndarray]:
  if encoder.encode is None:
    raise ValueError(
      "negative_prompt_embeds is missing, and this pipeline has no text "
      "encoder for negative_prompt: pass it, or guidance_scale=1"
    )
  if not encoder.like_diffusers:
    return [negative for negative, _ in encoder(negatives, None)]
  plain = dataclasses.replace(encoder, clean=None, like_diffusers=False)
  negative = [negative for negative, _ in plain(negatives, None)]
  return _cut_to_longest(positive, negative)


def padded(encoded: Encoded) -> tuple[np.ndarray, ...]:
  """Features as arrays with masks.

  Returns:
    `f32[N, S, E]`, zero beyond each prompt, and `bool[N, S]`; then both of the
    negative prompts, of the same shapes.
  """
  longest = max(len(features) for pair in encoded for features in pair)
  arrays = []
  for rows in zip(*encoded, strict=True):
    lengths = np.asarray([len(row) for row in rows])
    arrays.append(
      np.stack([np.pad(x, ((0, longest - len(x)), (0, 0))) for x in rows])
    )
    arrays.append(np.arange(longest) < lengths[:, None])
  return tuple(arrays)


def cleaned(captions: Sequence[str], clean: bool | None) -> list[str]:
  """Cleans captions.

  Args:
    captions: to clean.
    clean: True removes web addresses, markup and the like, False only outer
      blanks and capitals, None nothing.
  """
  if clean is None:
    return list(captions)
  function = clean_caption if clean else normalize
  return [function(caption) for caption in captions]


def _cut_to_longest(
  positive: list[np.ndarray], negative: list[np.ndarray]
) -> list[np.ndarray]:
  end = -(-max(map(len, positive)) // MULTIPLE) * MULTIPLE
  return [codes[:end] for codes in negative]
