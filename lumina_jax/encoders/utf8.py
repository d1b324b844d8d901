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
  RMSNorm,
  normal,
  parameter,
  xavier,
)

# A run of letters, or one digit, or one sign; lines end at a slash or newline.
WORD = re.compile(r"[^\W\d_]+|\n|\S")
LINE_ENDS = ("/", "\n")


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

  @property
  def code_width(self) -> int:
    """K: integers that spell one word."""
    return 2 + self.word_bytes


def tokenize(cfg: Utf8Config, prompt: str) -> np.ndarray:
  """Spells a prompt: `i32[words, K]`, at least one word.

  Each row holds line, column, then the word's bytes plus 1, 0 where there is
  none. The empty prompt is one word without bytes.
  """
  codes, line, column = [], 0, 0
  for word in WORD.findall(prompt):
    data = word.encode("utf-8")
    for start in range(0, len(data), cfg.word_bytes):
      piece = data[start : start + cfg.word_bytes]
      spelled = [byte + 1 for byte in piece]
      blank = [0] * (cfg.word_bytes - len(piece))
      codes.append([line, column, *spelled, *blank])
      column += 1
    if word in LINE_ENDS:
      line, column = line + 1, 0
  if len(codes) > cfg.max_words:
    logging.warning(
      "prompt cut off after %d of %d words: %r",
      cfg.max_words,
      len(codes),
      prompt,
    )
    codes = codes[: cfg.max_words]
  codes = codes or [[0] * cfg.code_width]
  return np.asarray(codes, np.int32)


class Utf8Encoder(nn.Module):
  """Codes `i32[B, S, K]` -> features `f32[B, S, E]`."""

  cfg: Utf8Config

  @nn.compact
  def __call__(self, codes: jax.Array) -> jax.Array:
    cfg = self.cfg
    place, spelling = codes[..., :2], codes[..., 2:]
    table = parameter(
      self,
      "bytes",
      nn.initializers.normal(1.0),
      (257, cfg.byte_width),
      (None,) * 2,
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
    where = fourier(place, cfg.width // 4)
    x = word + Einsum(
      "BSU,UE->BSE",
      (where.shape[-1], cfg.width),
      (None, "text"),
      normal,
      bias=True,
      name="place",
    )(where)
    h = RMSNorm(1e-5, "text", name="norm")(x)
    hidden = 2 * cfg.width
    h = Einsum(
      "BSE,EF->BSF",
      (cfg.width, hidden),
      ("text", "mlp"),
      xavier(),
      bias=True,
      name="up",
    )(h)
    return x + Einsum(
      "BSF,FE->BSE", (hidden, cfg.width), ("mlp", "text"), xavier(), name="down"
    )(nn.gelu(h))


def fourier(place: jax.Array, bands: int) -> jax.Array:
  """Sines and cosines of places: `i32[..., A]` -> `f32[..., 2 A bands]`.

  Wavelengths run from 2 pi to 64 pi, so that neighbours differ clearly and a
  prompt of dozens of words does not wrap around.
  """
  rates = jnp.exp(-math.log(32.0) * jnp.arange(bands) / max(bands - 1, 1))
  angle = place.astype(jnp.float32)[..., None] * rates
  waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return waves.reshape(*place.shape[:-1], -1)
