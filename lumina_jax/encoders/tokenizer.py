"""Captions -> tokens of a language model, by the tokenizer in its folder."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pathlib
import textwrap
from typing import Any

import numpy as np

SHOWN = 200  # Characters of what was cut off.
# One of the first holds the vocabulary; the others are settings.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
SETTINGS = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "merges.txt",
)


class Tokenizer:
  """transformers' tokenizer of a folder, with one rule for ends and length.

  The token that begins a text stands first, always; the one that ends it last,
  if asked for. Then all that is too long is cut off at the end, so that a long
  text has no end. Lumina-T2I's LLaMA: both, 128 tokens. Lumina-Next's Gemma:
  the first only, 256 tokens.

  Attributes:
    max_tokens: of a caption, with those that begin and end it.
    add_eos: whether the end is marked.
  """

  def __init__(
    self, folder: str | os.PathLike, max_tokens: int, add_eos: bool = False
  ):
    """Loads a tokenizer.

    Args:
      folder: with the files of a tokenizer, or a diffusers pipeline with such a
        folder as its tokenizer/. Nothing is fetched.
      max_tokens: of a caption.
      add_eos: whether the end is marked.

    Raises:
      FileNotFoundError: if the files are not there.
      ValueError: if they cannot be read, or lack a token that is needed.
    """
    if max_tokens < 1:
      raise ValueError(f"max_tokens = {max_tokens} must be positive")
    self.max_tokens, self.add_eos = max_tokens, add_eos
    self._folder = _find(pathlib.Path(folder).expanduser())
    self._tokenizer = _load(self._folder)
    self._first = [self._special("bos_token")]
    self._last = [self._special("eos_token")] if add_eos else []
    self._told = False

  def __call__(self, caption: str) -> np.ndarray:
    """Tokens of a caption, `i32[n]`, 1 <= n <= max_tokens.

    The first time that a caption is too long, a warning says what was cut off.
    """
    # What is said on length by the tokenizer itself knows another limit.
    ids = self._tokenizer.encode(
      caption, add_special_tokens=False, verbose=False
    )
    whole = self._first + ids + self._last
    if len(whole) > self.max_tokens and not self._told:
      self._told = True
      lost = self._first + ids
      lost = lost[self.max_tokens :]
      logging.warning(
        "a caption of %d tokens was cut off after %d, which is all that the "
        "network reads; shorten it. Lost: %r (said once)",
        len(whole),
        self.max_tokens,
        textwrap.shorten(self._tokenizer.decode(lost), SHOWN),
      )
    return np.asarray(whole[: self.max_tokens], np.int32)

  def check(self, vocab: int) -> None:
    """Compares with the table of a language model.

    Args:
      vocab: rows of the table. It may have more than there are tokens.

    Raises:
      ValueError: if a text could have a token without a row.
    """
    ids = self._tokenizer.get_vocab()
    # Some have a token for padding alone that the table never had.
    ids = {t: i for t, i in ids.items() if t != self._tokenizer.pad_token}
    token = max(ids, key=ids.__getitem__)
    if ids[token] >= vocab:
      raise ValueError(
        f"the tokenizer in {self._folder} has tokens up to {ids[token]} "
        f"({token!r}), {len(ids)} in all, and the language model {vocab} rows; "
        "they do not belong together"
      )

  @functools.cached_property
  def identity(self) -> str:
    """A digest of its files and options; equal means equal tokens."""
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
        f"the tokenizer in {self._folder} has no {name}; name it in "
        "tokenizer_config.json"
      )
    return number


def _find(folder: pathlib.Path) -> pathlib.Path:
  for place in (folder, folder / "tokenizer"):
    if any((place / name).exists() for name in VOCABULARIES):
      return place
  raise FileNotFoundError(
    f"no tokenizer in {folder}; looked there and in its tokenizer/ for "
    f"{', '.join(VOCABULARIES)}"
  )


def _load(folder: pathlib.Path) -> Any:
  # It would say that PyTorch is missing, which nothing here needs.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  from transformers import AutoTokenizer  # Takes seconds.

  try:
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
  except Exception as error:  # Of whatever kind: tokenizers raises bare ones.
    raise ValueError(
      f"the tokenizer in {folder} cannot be read: {error}"
    ) from error
