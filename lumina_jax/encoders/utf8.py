"""The embedded text encoder: words as UTF-8 bytes, no download, trained along.

A prompt becomes one feature per word: the bytes of the word, read at their
places within it, and the word's place, a line and a column. Letters stand
together, digits and signs alone (as in LLaMA's tokenizer), so that "314" and
"3 1 4" are the same three words. Its tables are parameters that train with the
backbone and are saved with it.

B rows, S words a row, E text width, W bytes a word.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.backbone.layers import (
  Einsum,
  parameter,
  xavier,
)

# A run of letters, or one digit, or one sign; lines end at a slash or newline.
WORD = re.compile(r"[^\W\d_]+|\n|\S")
LINE_ENDS = ("/", "\n")
PLACES = 2  # line and column


@dataclasses.dataclass(frozen=True)
class Utf8Config:
  """Sizes of the embedded encoder.

  Attributes:
    width: E of the features; the backbone's text_width.
    byte_width: width of a byte's embedding.
    word_bytes: W; a longer word goes on as another word.
    max_words: words of a prompt; what follows is cut off, with a warning.
  """

  width: int
  byte_width: int = 32
  word_bytes: int = 16
  max_words: int = 32

  def __post_init__(self):
    if self.word_bytes < 1 or self.max_words < 1:
      raise ValueError(
        f"word_bytes = {self.word_bytes} and max_words = {self.max_words} must "
        "be positive"
      )

  @property
  def code_width(self) -> int:
    """K: integers that spell one word."""
    return PLACES + self.word_bytes


def tokenize(
  cfg: Utf8Config, prompt: str, origin: tuple[int, int] = (0, 0)
) -> np.ndarray:
  """Spells a prompt: `i32[words, K]`, at least one word.

  Each row holds line and column, counted from `origin`, then the word's bytes
  plus 1, 0 where there is none. The empty prompt is a word without bytes.
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

  The sum of what is spelled and of where it stands, both linear: the backbone
  norms it and makes its keys and values of it.
  """

  cfg: Utf8Config

  @nn.compact
  def __call__(self, codes: jax.Array) -> jax.Array:
    cfg = self.cfg
    place, spelling = codes[..., :PLACES], codes[..., PLACES:]
    bytes_ = nn.initializers.normal(1.0)
    table = parameter(
      self, "bytes", bytes_, (257, cfg.byte_width), (None, None)
    )
    # The empty place of a word shall add nothing.
    letters = jnp.where(spelling[..., None] > 0, table[spelling], 0)
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
  """Sines and cosines of places: `i32[..., A]` -> `f32[..., 2 A bands]`.

  Rates fall from 4 to 1/16, so that neighbours differ clearly and a prompt of
  dozens of words does not wrap around. They embrace those at which a digit's
  position turns in the backbone's RoPE, so that the place of a word can be
  matched with a place on the canvas.
  """
  rates = 4 * jnp.exp(-math.log(64) * jnp.arange(bands) / max(bands - 1, 1))
  angle = place.astype(jnp.float32)[..., None] * rates
  waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return waves.reshape(*place.shape[:-1], -1)
