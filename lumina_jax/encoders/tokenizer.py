"""Tokenizers of language models, loaded from folders."""

import functools
import hashlib
import logging
import os
import pathlib
import textwrap
from typing import Any

import numpy as np

SHOWN = 200  # Characters of the lost text that a warning shows.
# Every folder has one of VOCABULARIES.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
SETTINGS = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "merges.txt",
)


class Tokenizer:
  """Converts captions to tokens with a tokenizer of transformers.

  The tokens of a caption begin with the bos token; `add_eos` appends the eos
  token. The result is then cut to `max_tokens`, so a long caption has no eos
  token. Lumina-T2I's LLaMA adds eos and takes 128 tokens; Lumina-Next's Gemma
  does not and takes 256.

  Attributes:
    max_tokens: largest number of tokens of a caption, bos and eos included.
    add_eos: whether the eos token follows a caption.
  """

  def __init__(
    self, folder: str | os.PathLike, max_tokens: int, add_eos: bool = False
  ):
    """Loads a tokenizer.

    Args:
      folder: folder of a tokenizer, or of a diffusers pipeline with a folder
        tokenizer/. Nothing is downloaded.
      max_tokens: largest number of tokens of a caption.
      add_eos: whether the eos token follows a caption.

    Raises:
      FileNotFoundError: if the folder has no tokenizer.
      ValueError: if it cannot be read, or has no bos or eos token.
    """
    if max_tokens < 1:
      raise ValueError(f"max_tokens = {max_tokens} must be positive")
    self.max_tokens, self.add_eos = max_tokens, add_eos
    self._folder = _find(pathlib.Path(folder).expanduser())
    self._tokenizer = _load(self._folder)
    self._bos = [self._special("bos_token")]
    self._eos = [self._special("eos_token")] if add_eos else []
    self._warned = False

  def __call__(self, caption: str) -> np.ndarray:
    """Tokens of a caption, `i32[n]`, 1 <= n <= max_tokens.

    The first caption that is too long logs a warning with the lost text.
    """
    # verbose=False: the tokenizer would warn about a limit of its own.
    ids = self._tokenizer.encode(
      caption, add_special_tokens=False, verbose=False
    )
    tokens = self._bos + ids + self._eos
    if len(tokens) > self.max_tokens and not self._warned:
      self._warned = True
      lost = (self._bos + ids)[self.max_tokens :]
      logging.warning(
        "a caption of %d tokens was cut off after %d, the limit of the "
        "network; shorten it. Lost: %r (shown once)",
        len(tokens),
        self.max_tokens,
        textwrap.shorten(self._tokenizer.decode(lost), SHOWN),
      )
    return np.asarray(tokens[: self.max_tokens], np.int32)

  def check(self, vocab: int) -> None:
    """Checks that the embedding table of a language model has all tokens.

    Args:
      vocab: rows of the table; it may have more rows than there are tokens.

    Raises:
      ValueError: if a token has no row.
    """
    ids = self._tokenizer.get_vocab()
    # The padding token of some tokenizers is beyond the table.
    ids = {t: i for t, i in ids.items() if t != self._tokenizer.pad_token}
    token = max(ids, key=ids.__getitem__)
    if ids[token] >= vocab:
      raise ValueError(
        f"the tokenizer in {self._folder} has tokens up to {ids[token]} "
        f"({token!r}), the language model has {vocab} rows; use the model's "
        "own tokenizer"
      )

  @functools.cached_property
  def identity(self) -> str:
    """Digest of files and options; equal digests give equal tokens."""
    digest = hashlib.sha256(f"{self.max_tokens} {self.add_eos}".encode())
    for name in (*VOCABULARIES, *SETTINGS):
      path = self._folder / name
      if path.exists():
        digest.update(f" {name} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

  def _special(self, name: str) -> int:
    number = getattr(self._tokenizer, f"{name}_id")
    if number is None:
      raise ValueError(
        f"the tokenizer in {self._folder} has no {name}; set it in "
        "tokenizer_config.json"
      )
    return number


def _find(folder: pathlib.Path) -> pathlib.Path:
  for candidate in (folder, folder / "tokenizer"):
    if any((candidate / name).exists() for name in VOCABULARIES):
      return candidate
  raise FileNotFoundError(
    f"no tokenizer in {folder}; it and its tokenizer/ have none of "
    f"{', '.join(VOCABULARIES)}"
  )


def _load(folder: pathlib.Path) -> Any:
  # transformers would warn that PyTorch is missing, which is not needed.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from transformers import AutoTokenizer  # Takes seconds.

  try:
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  except Exception as error:  # tokenizers raises plain Exceptions.
    raise ValueError(
      f"the tokenizer in {folder} cannot be read: {error}"
    ) from error
