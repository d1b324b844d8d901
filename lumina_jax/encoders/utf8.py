"""The embedded text encoder: words as UTF-8 bytes, trained with the backbone.

A prompt becomes one feature per word, made of the bytes of the word and of its
position, a line and a column. A run of letters is one word; every digit and
sign is a word of its own (as in LLaMA's tokenizer), so "314" and "3 1 4" are
the same three words. Its parameters are part of the network.

B rows, S words a row, E text width, W bytes a word.
"""

import dataclasses
import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.backbone.layers import Einsum, parameter, xavier
from lumina_jax.files import schema

# A run of letters, a digit or a sign; a slash or a newline ends a line.
WORD = re.compile(r"[^\W\d_]+|\n|\S")
LINE_ENDS = ("/", "\n")
PLACES = 2  # Line and column.


@dataclasses.dataclass(frozen=True)
class Utf8Config:
  """Sizes of the embedded encoder.

  Attributes:
    width: width E of the features; the backbone's text_width.
    byte_width: width of the embedding of a byte.
    word_bytes: bytes W of a word; longer words are split.
    max_words: words of a prompt; the rest is cut off with a warning.

  Raises:
    ValueError: if word_bytes or max_words is not positive.
  """

  width: int
  byte_width: int = 32
  word_bytes: int = 16
  max_words: int = 32

  def __post_init__(self):
    schema.check_positive(self, "word_bytes", "max_words")

  @property
  def code_width(self) -> int:
    """K: integers that represent one word."""
    return PLACES + self.word_bytes


def tokenize(
  cfg: Utf8Config, prompt: str, origin: tuple[int, int] = (0, 0)
) -> np.ndarray:
  """Converts a prompt to codes `i32[words, K]`, at least one word.

  A row holds line and column, counted from `origin`, then the bytes of the word
  plus 1, with zeros after the last one. The empty prompt is a word without
  bytes.
  """
  lines: list[list[bytes]] = [[]]
  for word in WORD.findall(prompt):
    data = word.encode("utf-8")
    starts = range(0, len(data), cfg.word_bytes)
    lines[-1] += [data[start : start + cfg.word_bytes] for start in starts]
    if word in LINE_ENDS:
      lines.append([])
  words = [
    (line, column, piece)
    for line, pieces in enumerate(lines)
    for column, piece in enumerate(pieces)
  ]
  if len(words) > cfg.max_words:
    logging.warning(
      "prompt cut off after %d of %d words: %r",
      cfg.max_words,
      len(words),
      prompt,
    )
  codes = np.zeros((max(len(words), 1), cfg.code_width), np.int32)
  for code, (*place, piece) in zip(codes, words, strict=False):
    code[:PLACES] = place
    code[PLACES : PLACES + len(piece)] = np.frombuffer(piece, np.uint8) + 1
  codes[:, :PLACES] += origin
  return codes[: cfg.max_words]


class Utf8Encoder(nn.Module):
  """Codes `i32[B, S, K]` -> features `f32[B, S, E]`.

  The sum of linear functions of the bytes and of the position. The backbone
  norms it and computes keys and values from it.
  """

  cfg: Utf8Config

  @nn.compact
  def __call__(self, codes: jax.Array) -> jax.Array:
    cfg = self.cfg
    place, bytes_ = codes[..., :PLACES], codes[..., PLACES:]
    init = nn.initializers.normal(1.0)
    table = parameter(self, "bytes", init, (257, cfg.byte_width), (None, None))
    # Places without a byte add nothing.
    letters = jnp.where(bytes_[..., None] > 0, table[bytes_], 0)
    word = Einsum(
      "BSWU,WUE->BSE",
      (cfg.word_bytes, cfg.byte_width, cfg.width),
      (None, None, "text"),
      xavier(inputs=2),
      name="spelling",
    )(letters)
    waves = fourier(place, cfg.width // 4)
    return word + Einsum(
      "BSU,UE->BSE",
      (waves.shape[-1], cfg.width),
      (None, "text"),
      xavier(),
      bias=True,
      name="place",
    )(waves)


def fourier(place: jax.Array, bands: int) -> jax.Array:
  """Cosines and sines of positions: `i32[..., A]` -> `f32[..., 2 A bands]`.

  Rates fall from 4 to 1/16: neighbours differ clearly, and a prompt of dozens
  of words does not wrap around. They include the rates at which RoPE rotates
  positions of digits, so attention can match a word with a position in the
  grid.
  """
  rates = 4 * jnp.exp(-math.log(64) * jnp.arange(bands) / max(bands - 1, 1))
  angle = place.astype(jnp.float32)[..., None] * rates
  waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return waves.reshape(*place.shape[:-1], -1)
