"""Prompts as words of bytes, and their features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lumina_jax.encoders.utf8 import (
  PLACES,
  Utf8Config,
  Utf8Encoder,
  fourier,
  tokenize,
)

CFG = Utf8Config(width=16, byte_width=8, word_bytes=6, max_words=64)
PROMPTS = (
  "3 1 / 4 1",
  "a handwritten seven",
  "Grüße aus Köln, 100%!",
  "雪人 in the 山",
  "a 🐼🏽 of snow\non two lines",
  "snake_case\tand\x00control",
)


def words(prompt, cfg=CFG):
  """Bytes of each word, read back from its codes."""
  return [
    bytes(code - 1 for code in row[PLACES:] if code)
    for row in tokenize(cfg, prompt)
  ]


def places(prompt):
  return tokenize(CFG, prompt)[:, :2].tolist()


def test_digits_are_words_with_or_without_spaces():
  np.testing.assert_array_equal(tokenize(CFG, "314"), tokenize(CFG, "3 1 4"))
  assert words("314") == [b"3", b"1", b"4"]


def test_letters_form_words_and_signs_are_words():
  assert words("two-by2!") == [b"two", b"-", b"by", b"2", b"!"]


@pytest.mark.parametrize("end", ["/", "\n"])
def test_a_line_end_closes_its_line_and_columns_restart(end):
  expected = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0]]
  assert places(f"3 1 {end} 4{end}1") == expected


@pytest.mark.parametrize("prompt", ["", " ", " \t "])
def test_the_empty_prompt_is_one_blank_word(prompt):
  codes = tokenize(CFG, prompt)
  assert codes.shape == (1, CFG.code_width)
  assert not codes.any()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_codes_hold_all_bytes_within_the_table(prompt):
  visible = "".join(c for c in prompt if c == "\n" or not c.isspace())
  assert b"".join(words(prompt)).decode() == visible
  codes = tokenize(CFG, prompt)
  assert codes.dtype == np.int32
  assert codes.shape[1] == CFG.code_width
  assert codes[:, PLACES:].min() >= 0
  assert codes[:, PLACES:].max() <= 256


def test_a_long_word_is_split():
  assert words("handwritten") == [b"handwr", b"itten"]
  assert places("handwritten 7") == [[0, 0], [0, 1], [0, 2]]
  assert words("山" * 3) == ["山山".encode(), "山".encode()]


@pytest.mark.parametrize("name", ["word_bytes", "max_words"])
def test_sizes_must_be_positive(name):
  with pytest.raises(ValueError, match=f"{name} = 0"):
    dataclasses.replace(CFG, **{name: 0})


def test_a_prompt_of_max_words_is_kept_whole(caplog):
  cfg = dataclasses.replace(CFG, max_words=3)
  assert len(tokenize(cfg, "3 1 4")) == 3
  assert not caplog.records


def test_a_longer_prompt_is_cut_off_with_a_warning(caplog):
  cfg = dataclasses.replace(CFG, max_words=3)
  assert words("3 1 4 1 5", cfg) == [b"3", b"1", b"4"]
  assert "cut off after 3 of 5 words: '3 1 4 1 5'" in caplog.text


encode = jax.jit(Utf8Encoder(CFG).apply)
WORDS = 8  # All prompts are padded, to share one program.


@functools.cache
def parameters():
  init = jax.jit(Utf8Encoder(CFG).init)
  return nn.unbox(init(jax.random.key(0), tokenize(CFG, "7")[None]))


def features(prompt, variables=None):
  codes = tokenize(CFG, prompt)
  padded = np.pad(codes, ((0, WORDS - len(codes)), (0, 0)))[None]
  rows = np.asarray(encode(variables or parameters(), padded)[0])
  assert rows.shape == (WORDS, CFG.width) and rows.dtype == np.float32
  return rows[: len(codes)]


def smallest_distance(x):
  gaps = np.linalg.norm(x[:, None] - x[None], axis=-1)
  return np.min(gaps + 1e3 * np.eye(len(x)))


def test_words_have_distinct_features():
  prompts = ("seven", "Seven", "eleven", "neves", "7", "8", "")
  firsts = np.stack([features(prompt)[0] for prompt in prompts])
  assert smallest_distance(firsts) > 0.1


def test_positions_have_distinct_features():
  x = features("7 7 7 / 7 7 / 7")
  sevens = x[[0, 1, 2, 4, 5, 7]]
  assert smallest_distance(sevens) > 1e-3


def test_places_without_a_byte_add_nothing():
  params = parameters()["params"]
  table = np.array(params["bytes"])
  table[0] = np.nan
  garbage = {"params": params | {"bytes": table}}
  np.testing.assert_array_equal(
    features("a seven", garbage), features("a seven")
  )


def test_positions_differ_clearly_and_do_not_wrap_around():
  waves = np.asarray(fourier(jnp.arange(64)[:, None], 32))
  assert waves.shape == (64, 64)
  assert smallest_distance(waves) > 1
