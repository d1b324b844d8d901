"""Encodes captions with a frozen language model; caches their features.

S tokens of a caption, E width of the features.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lumina_jax.encoders.caption_cleaning import CLEANERS
from lumina_jax.encoders.feature_cache import FeatureCache
from lumina_jax.encoders.language import encode_tokens
from lumina_jax.encoders.language_config import LanguageConfig
from lumina_jax.encoders.tokenizer import Tokenizer
from lumina_jax.parallel import processes

MEMORY_SIZE = 256  # Captions; the longest features of Gemma-2B take 2 MB.
MIN_LENGTH = 8  # Tokens in the rows of the shortest batch.


class CaptionEncoder:
  """A frozen language model as a text encoder; threads may share it.

  The parameters load with the first caption that is neither in memory nor in
  the cache on disk. If they lie on devices of several processes, all processes
  must encode the same captions in the same order without a cache on disk: a
  process that finds its captions there does not join the computation.

  Attributes:
    width: width E of the features.
    tokenizer: tokenizer of the language model.
  """

  def __init__(
    self,
    cfg: LanguageConfig,
    tokenizer: Tokenizer,
    load_params: Callable[[], Any],
    *,
    batch_size: int = 8,
    cache: str | os.PathLike | None = None,
    identity: str = "",
    system_prompt: str = "",
    cleaning: str = "",
  ):
    """Creates the encoder without loading parameters.

    Args:
      cfg: config of the language model.
      tokenizer: tokenizer of the same model.
      load_params: returns the parameters, on one device or on a mesh.
      batch_size: largest number of captions in a batch.
      cache: folder with one file of features per caption; created if missing.
        Encoders and processes may share it. It never shrinks.
      identity: identity of the weights, such as path and version. Cached
        features are valid for one identity, config, tokenizer and full text.
      system_prompt: text before every caption; it is not cleaned.
      cleaning: how captions are cleaned, a key of CLEANERS.

    Raises:
      ValueError: if an option is invalid, or the tokenizer has more tokens than
        the model.
      OSError: if the cache cannot be written to.
    """
    if cleaning not in CLEANERS:
      raise ValueError(
        f"cleaning = {cleaning!r}: use one of {', '.join(map(repr, CLEANERS))}"
      )
    if batch_size < 1:
      raise ValueError(f"batch_size = {batch_size} must be positive")
    tokenizer.check(cfg.vocab)
    self.width = cfg.width
    self.tokenizer = tokenizer
    self._cfg, self._load, self._batch_size = cfg, load_params, batch_size
    self._clean, self._system_prompt = CLEANERS[cleaning], system_prompt
    self._identity = identity
    self._params: Any = None
    self._lock = threading.RLock()  # Data threads and sampling share it.
    self._memory_size = MEMORY_SIZE
    self._memory: OrderedDict[str, np.ndarray] = OrderedDict()
    self._cache = cache and FeatureCache(cache, cfg.dtype)

  def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
    """Encodes captions; equal captions are encoded once.

    Returns:
      Read-only features of each caption, `f32[S_n, E]`.

    Raises:
      FloatingPointError: if features are not finite.
      ValueError: if a caption has tokens that the model does not have.
    """
    texts = self._texts(captions)
    with self._lock:
      found = {text: self._lookup(text) for text in dict.fromkeys(texts)}
      missing = [text for text, features in found.items() if features is None]
      for text, features in self._compute(missing):
        if self._cache:
          self._cache.write(self._key(text), features)
        found[text] = features
      for text, features in found.items():
        self._keep(text, features)
    return [found[text] for text in texts]

  def encode_one(self, caption: str) -> np.ndarray:
    """Encodes one caption, `f32[S, E]`."""
    return self.encode([caption])[0]

  def length(self, caption: str) -> int:
    """Number of tokens S of a caption; does not encode it."""
    (text,) = self._texts([caption])
    return len(self.tokenizer(text))

  def is_cached(self, captions: Sequence[str]) -> bool:
    """Whether `encode` needs no parameters for these captions."""
    return all(self._lookup(text) is not None for text in self._texts(captions))

  @property
  def loaded(self) -> bool:
    """Whether the parameters are loaded."""
    return self._params is not None

  def free(self) -> None:
    """Frees the parameters; the next uncached caption loads them again."""
    with self._lock:
      self._params = None

  def reserve(self, captions: int) -> None:
    """Keeps the features of at least this many captions in memory."""
    self._memory_size = max(self._memory_size, captions)

  def clear_memory(self) -> None:
    """Drops the features in memory; those on disk stay."""
    self._memory.clear()

  def _texts(self, captions: Sequence[str]) -> list[str]:
    if isinstance(captions, str):
      raise TypeError(f"captions must be a list of strings: [{captions!r}]")
    return [self._system_prompt + self._clean(caption) for caption in captions]

  def _lookup(self, text: str) -> np.ndarray | None:
    if text in self._memory:
      return self._memory[text]
    return self._cache.read(self._key(text)) if self._cache else None

  def _keep(self, text: str, features: np.ndarray) -> None:
    features.setflags(write=False)  # Callers share the array.
    self._memory[text] = features
    self._memory.move_to_end(text)
    while len(self._memory) > self._memory_size:
      self._memory.popitem(last=False)

  def _key(self, text: str) -> str:
    values = (repr(self._cfg), self.tokenizer.identity, self._identity, text)
    digests = [hashlib.sha256(value.encode()).digest() for value in values]
    return hashlib.sha256(b"".join(digests)).hexdigest()

  def _compute(self, texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    tokens = {text: self.tokenizer(text) for text in texts}
    for text, ids in tokens.items():
      if ids.max() >= self._cfg.vocab:
        raise ValueError(
          f"{text!r} has token {ids.max()}, but the vocabulary of the language "
          f"model has {self._cfg.vocab}; use the model's own tokenizer"
        )
    # Captions of similar length share a batch, which saves padding.
    texts = sorted(texts, key=lambda text: len(tokens[text]))
    for start in range(0, len(texts), self._batch_size):
      batch = texts[start : start + self._batch_size]
      features = self._run([tokens[text] for text in batch])
      for text, row in zip(batch, features, strict=True):
        if not np.isfinite(row).all():
          raise FloatingPointError(
            f"features of {text!r} are not finite in {self._cfg.dtype}; use "
            "bfloat16 or float32, or check whether the weights are damaged"
          )
        yield text, row

  def _run(self, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Features of one batch, whose shape is one of few."""
    if self._params is None:
      self._params = self._load()
    longest = max(MIN_LENGTH, *map(len, rows))
    count = min(_power_of_two(len(rows)), self._batch_size)
    tokens = np.zeros((2, count, _power_of_two(longest)), np.int32)
    for i, row in enumerate(rows):
      tokens[:, i, : len(row)] = row, np.ones_like(row)
    with processes.use_mesh_of(self._params):
      features = encode_tokens(self._cfg, self._params, *tokens)
    features = processes.gather(features)
    return [features[i, : len(row)].copy() for i, row in enumerate(rows)]


def _power_of_two(n: int) -> int:
  """The smallest power of two that is at least n."""
  return 1 << (n - 1).bit_length()
