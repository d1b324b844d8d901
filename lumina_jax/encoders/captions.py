"""Captions -> features: what pipelines and data ask, whatever encodes.

Two encoders behind one interface, `width`, `encode` and a call: a frozen
language model, with what it has encoded kept in memory and on disk, and the
embedded encoder of `utf8`.

B rows, S tokens, E width.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from lumina_jax.encoders import utf8
from lumina_jax.encoders.cleaning import clean_caption, normalize
from lumina_jax.encoders.feature_cache import FeatureCache
from lumina_jax.encoders.language import LanguageConfig, encode_tokens
from lumina_jax.parallel import processes

CLEANING = {
  None: lambda caption: caption,
  "": lambda caption: caption,
  "strip": normalize,
  "clean": clean_caption,
}
REMEMBERED = 256  # Captions in memory; Gemma-2B's longest takes 2 MB.
SHORTEST = 8  # Tokens of the shortest row that a program is compiled for.
# Of Lumina-Image 2.0, set before every prompt.
LUMINA_IMAGE_2 = (
  "You are an assistant designed to generate superior images with the superior "
  "degree of image-text alignment based on textual prompts or user prompts. "
  "<Prompt Start> "
)


class AnyTokenizer(Protocol):
  """What `CaptionEncoder` asks of a tokenizer; `tokenizer.Tokenizer` is one."""

  identity: str

  def __call__(self, caption: str) -> np.ndarray:
    """Tokens `i32[n]`, n >= 1."""

  def check(self, vocab: int) -> None:
    """Raises ValueError if tokens do not fit a table of so many rows."""


class CaptionEncoder:
  """A frozen language model as a text encoder.

  Its parameters are loaded when a caption is first seen that is neither in
  memory nor in the cache, and given up by `free`. If they lie on devices of
  several processes, all of these must ask for the same captions in the same
  order, and use no cache, which could spare one of them what others wait for.

  Attributes:
    width: E.
    tokenizer: of its captions.
  """

  def __init__(
    self,
    cfg: LanguageConfig,
    tokenizer: AnyTokenizer,
    load_params: Callable[[], Any],
    *,
    pad_multiple: int = 8,
    batch_size: int = 8,
    cache: str | os.PathLike | None = None,
    identity: str = "",
    system_prompt: str = "",
    clean: str | None = None,
  ):
    """Loads nothing.

    Args:
      cfg: the model.
      tokenizer: of the same model.
      load_params: gives its parameters, on one device or on a mesh.
      pad_multiple: lengths of rows are multiples of it.
      batch_size: captions that are encoded together, at most.
      cache: a folder of features, a file a caption; it is made if need be, may
        be shared by encoders and by processes, and never shrinks.
      identity: of the weights, such as their path and version. What is in the
        cache holds for this identity, this model, this tokenizer and the whole
        text, system prompt and all.
      system_prompt: set before every caption as it is, after the cleaning.
      clean: None or ""; "strip", lower case without space around; or "clean",
        `cleaning.clean_caption`.

    Raises:
      ValueError: if an option is none, or the tokenizer is of another model.
    """
    if clean not in CLEANING:
      raise ValueError(f"clean = {clean!r}: use None, 'strip' or 'clean'")
    if pad_multiple < 1 or batch_size < 1:
      raise ValueError(
        f"pad_multiple = {pad_multiple} and batch_size = {batch_size} must be "
        "positive"
      )
    tokenizer.check(cfg.vocab)
    self.width = cfg.width
    self.tokenizer = tokenizer
    self._cfg, self._load = cfg, load_params
    self._pad_multiple, self._batch_size = pad_multiple, batch_size
    self._clean, self._system_prompt = CLEANING[clean], system_prompt
    self._identity = identity
    self._params: Any = None
    self._lock = threading.RLock()  # Data threads and sampling share it.
    self._remembered = REMEMBERED
    self._memory: OrderedDict[str, np.ndarray] = OrderedDict()
    self._cache = cache and FeatureCache(cache, cfg.dtype)

  def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
    """Features of captions, each `f32[S_n, E]` and not to be written to.

    Equal captions are encoded once.

    Raises:
      FloatingPointError: if features are not finite.
      ValueError: if a caption has tokens that the model does not know.
    """
    texts = self._texts(captions)
    with self._lock:
      found = {text: self._recall(text) for text in dict.fromkeys(texts)}
      missing = [text for text, features in found.items() if features is None]
      for text, features in self._compute(missing):
        if self._cache:
          self._cache.write(self._key(text), features)
        found[text] = features
      for text, features in found.items():
        self._remember(text, features)
    return [found[text] for text in texts]

  def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Features `f32[B, S, E]`, zero at padding, and where they are real.

    Returns:
      The features and `bool[B, S]`; padding stands at the right, S is the next
      multiple of pad_multiple.
    """
    return pad(self.encode(captions), self._pad_multiple)

  def encode_one(self, caption: str) -> np.ndarray:
    """Features of a caption, `f32[S, E]`."""
    return self.encode([caption])[0]

  def length(self, caption: str) -> int:
    """S of a caption's features, without encoding it."""
    (text,) = self._texts([caption])
    return len(self.tokenizer(text))

  def knows(self, captions: Sequence[str]) -> bool:
    """Whether `encode` would need no parameters."""
    return all(self._recall(text) is not None for text in self._texts(captions))

  @property
  def loaded(self) -> bool:
    """Whether its parameters are in memory."""
    return self._params is not None

  def free(self) -> None:
    """Gives the parameters up; the next unknown caption loads them again."""
    with self._lock:
      self._params = None

  def remember(self, captions: int) -> None:
    """Makes room for so many captions in memory, if there is less."""
    self._remembered = max(self._remembered, captions)

  def forget(self) -> None:
    """Gives up what it has encoded; a cache on disk stays."""
    self._memory.clear()

  def _texts(self, captions: Sequence[str]) -> list[str]:
    clean = self._clean
    return [self._system_prompt + clean(caption) for caption in _list(captions)]

  def _recall(self, text: str) -> np.ndarray | None:
    if text in self._memory:
      return self._memory[text]
    return self._cache.read(self._key(text)) if self._cache else None

  def _remember(self, text: str, features: np.ndarray) -> None:
    features.setflags(write=False)  # Several callers hold it.
    self._memory[text] = features
    self._memory.move_to_end(text)
    while len(self._memory) > self._remembered:
      self._memory.popitem(last=False)

  def _key(self, text: str) -> str:
    parts = (repr(self._cfg), self.tokenizer.identity, self._identity, text)
    digests = [hashlib.sha256(part.encode()).digest() for part in parts]
    return hashlib.sha256(b"".join(digests)).hexdigest()

  def _compute(self, texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    tokens = {text: self.tokenizer(text) for text in texts}
    for text, ids in tokens.items():
      if ids.max() >= self._cfg.vocab:
        raise ValueError(
          f"{text!r} has token {ids.max()}, the language model has "
          f"{self._cfg.vocab}"
        )
    # Captions of like length share a batch, so that little is padding.
    texts = sorted(texts, key=lambda text: len(tokens[text]))
    for start in range(0, len(texts), self._batch_size):
      batch = texts[start : start + self._batch_size]
      features = self._run([tokens[text] for text in batch])
      for text, row in zip(batch, features, strict=True):
        if not np.isfinite(row).all():
          raise FloatingPointError(
            f"features of {text!r} are not finite in {self._cfg.dtype}; use "
            "bfloat16 or float32, or look whether the weights are damaged"
          )
        yield text, row

  def _run(self, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Features of one batch, a program for each of few shapes."""
    if self._params is None:
      self._params = self._load()
    count, length = ladder(rows, self._batch_size, self._pad_multiple)
    tokens = np.zeros((2, count, length), np.int32)
    for i, row in enumerate(rows):
      tokens[:, i, : len(row)] = row, np.ones_like(row)
    with processes.use_mesh_of(self._params):
      features = encode_tokens(self._cfg, self._params, *tokens)
    features = processes.gather(features)
    return [features[i, : len(row)].copy() for i, row in enumerate(rows)]


class Utf8Captions:
  """The embedded text encoder of `utf8`, its trained parameters at hand.

  Attributes:
    width: E.
  """

  def __init__(self, cfg: utf8.Utf8Config, params: Any, pad_multiple: int = 8):
    """Takes the parameters of `utf8.Utf8Encoder`."""
    self.width = cfg.width
    self._cfg, self._params, self._pad_multiple = cfg, params, pad_multiple

  def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
    """Features of captions, each `f32[S_n, E]`, a vector a word."""
    rows = [utf8.tokenize(self._cfg, caption) for caption in _list(captions)]
    if not rows:
      return []
    count, length = ladder(rows, _power(len(rows)), self._pad_multiple)
    codes = np.zeros((count, length, self._cfg.code_width), np.int32)
    for i, row in enumerate(rows):
      codes[i, : len(row)] = row
    features = np.asarray(_encode_codes(self._cfg, self._params, codes))
    return [features[i, : len(row)].copy() for i, row in enumerate(rows)]

  def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `CaptionEncoder`'s: features `f32[B, S, E]` and mask `bool[B, S]`."""
    return pad(self.encode(captions), self._pad_multiple)


def pad(
  features: list[np.ndarray], multiple: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows `f32[S_n, E]` -> `f32[B, S, E]` and where they are, `bool[B, S]`."""
  if not features:
    raise ValueError("no captions")
  length = _up(max(map(len, features)), multiple)
  out = np.zeros((len(features), length, features[0].shape[1]), np.float32)
  mask = np.zeros(out.shape[:2], bool)
  for i, row in enumerate(features):
    out[i, : len(row)], mask[i, : len(row)] = row, True
  return out, mask


def ladder(rows: list[np.ndarray], most: int, multiple: int) -> tuple[int, int]:
  """A shape that rows fit into, of few: powers of two, or the next multiple.

  Args:
    rows: of one batch.
    most: rows of the largest batch.
    multiple: of the length.
  """
  longest = max(SHORTEST, *map(len, rows))
  return min(_power(len(rows)), most), _up(_power(longest), multiple)


def _power(n: int) -> int:
  return 1 << (n - 1).bit_length()


def _up(n: int, multiple: int) -> int:
  return math.ceil(n / multiple) * multiple


def _list(captions: Sequence[str]) -> list[str]:
  if isinstance(captions, str):
    raise TypeError(f"one caption, not a list of captions: [{captions!r}]?")
  return list(captions)


@functools.partial(jax.jit, static_argnums=0)
def _encode_codes(cfg: utf8.Utf8Config, params: Any, codes: jax.Array):
  return utf8.Utf8Encoder(cfg).apply({"params": params}, codes)
