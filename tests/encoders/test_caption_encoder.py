"""Captions -> features: batches, memory, the cache on disk, cleaning."""

import dataclasses
import functools
import hashlib

import jax
import numpy as np
import pytest
from flax import linen as nn

from lumina_jax.encoders import captions as module
from lumina_jax.encoders.caption_encoder import CaptionEncoder, Utf8Captions
from lumina_jax.encoders.language import (
  LanguageConfig,
  boxed_shapes,
  encode_tokens,
)
from lumina_jax.encoders.utf8 import Utf8Config, Utf8Encoder, tokenize

CFG = LanguageConfig(
  vocab=160,
  width=8,
  depth=2,
  heads=2,
  kv_heads=1,
  head_dim=4,
  ffn_width=8,
  activation="silu",
  norm_eps=1e-6,
  query_scale=0.5,
  hidden="last",
)
HALF = dataclasses.replace(CFG, dtype="bfloat16")
CAPTIONS = ("a fox", "a red fox in snow", "", "dogs", "a fox")


@pytest.fixture(autouse=True, scope="module")
def quick():
  """Compiled in half the time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


class Letters:
  """A tokenizer: 1, then a token a letter."""

  identity = "letters"

  def __init__(self):
    self.seen = []

  def __call__(self, caption):
    self.seen.append(caption)
    return np.array([1, *map(ord, caption)], np.int32)

  def check(self, vocab):
    if vocab < 128:
      raise ValueError(f"{vocab} rows")


@functools.cache
def parameters():
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32),
    nn.unbox(boxed_shapes(CFG)),
  )


class Maker:
  """Makes encoders, and counts how often parameters are loaded."""

  def __init__(self):
    self.loads = 0

  def __call__(self, cfg=CFG, **options):
    def load():
      self.loads += 1
      return parameters()

    return CaptionEncoder(cfg, Letters(), load, **options)


@pytest.fixture
def make():
  return Maker()


@functools.cache
def alone(caption):
  """Features of one caption, without an encoder around it."""
  tokens = Letters()(caption)[None]
  tokens = np.pad(tokens, ((0, 0), (0, 32 - tokens.shape[1])))
  segments = (tokens > 0).astype(np.int32)
  found = np.asarray(encode_tokens(CFG, parameters(), tokens, segments)[0])
  return found[segments[0] > 0]


def close(found, expected):
  assert np.abs(expected).mean() > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_are_of_real_tokens_in_order(make):
  encoder = make(batch_size=2)
  found = encoder.encode(CAPTIONS)
  assert encoder.width == CFG.width
  for caption, features in zip(CAPTIONS, found, strict=True):
    assert features.shape == (1 + len(caption), CFG.width)
    assert features.dtype == np.float32
    close(features, alone(caption))


def test_a_call_pads_at_the_right(make):
  features, mask = make(pad_multiple=4)(CAPTIONS)
  assert features.shape == (5, 20, CFG.width)  # 18 tokens at most.
  assert features.dtype == np.float32 and mask.dtype == bool
  for i, caption in enumerate(CAPTIONS):
    count = 1 + len(caption)
    assert mask[i].tolist() == [True] * count + [False] * (20 - count)
    close(features[i, :count], alone(caption))
    assert not features[i, count:].any()


def test_equal_captions_are_encoded_once(make, monkeypatch):
  batches = spy(monkeypatch)
  encoder = make()
  encoder.encode(CAPTIONS)
  assert encoder.tokenizer.seen == list(dict.fromkeys(CAPTIONS))
  assert len(batches) == 1


def spy(monkeypatch):
  """Shapes of all batches from now on."""
  batches = []

  def encode(cfg, params, tokens, segments):
    batches.append(tokens.shape)
    return encode_tokens(cfg, params, tokens, segments)

  monkeypatch.setattr(module, "encode_tokens", encode)
  return batches


@pytest.mark.slow
def test_batches_have_few_shapes(make, monkeypatch):
  batches = spy(monkeypatch)
  encoder = make(batch_size=6)
  lengths = (2, 3, 5, 7, 8, 9, 11, 12, 14, 15, 17, 20, 23, 31)
  for count in (1, 2, 3, 4, 5, 6, 7):
    captions = [f"{chr(96 + count)}" * (n - 1) for n in lengths[:count]]
    encoder.encode(captions)
  encoder.encode(["z" * (n - 1) for n in (*lengths[::2], *lengths[1::2])])
  assert set(batches) <= {(r, s) for r in (1, 2, 4, 6) for s in (8, 16, 32)}
  assert batches[-3:] == [(6, 16), (6, 32), (2, 32)]  # By length.
  multiples = make(pad_multiple=12)
  multiples.encode(["y" * 13])
  assert batches[-1] == (1, 24)


def test_parameters_are_loaded_when_needed_and_given_up(make):
  encoder = make()
  assert make.loads == 0
  first = encoder.encode(["a fox"])
  encoder.encode(["dogs"])
  assert make.loads == 1
  encoder.free()
  assert encoder._params is None
  again = encoder.encode(["a fox", "dogs"])  # Remembered.
  assert make.loads == 1 and again[0] is first[0]
  encoder.encode(["cats"])
  assert make.loads == 2


def test_memory_is_bounded_and_keeps_what_is_used(make, monkeypatch):
  monkeypatch.setattr(module, "REMEMBERED", 2)
  encoder = make()
  for caption in ("a", "b", "a", "c"):
    encoder.encode([caption])
  encoder.tokenizer.seen.clear()
  encoder.encode(["a"])
  encoder.encode(["c"])
  assert encoder.tokenizer.seen == []
  encoder.encode(["b"])
  assert encoder.tokenizer.seen == ["b"]
  assert len(encoder._memory) == 2


def test_features_cannot_be_changed_by_a_caller(make):
  (features,) = make().encode(["a fox"])
  with pytest.raises(ValueError, match="read-only"):
    features[0] = 0


@pytest.mark.parametrize("cfg", [CFG, HALF], ids=lambda cfg: cfg.dtype)
def test_the_cache_gives_back_the_same_bits(make, tmp_path, cfg):
  first = make(cfg, cache=tmp_path / "cache").encode(CAPTIONS)
  assert make.loads == 1
  again = make(cfg, cache=tmp_path / "cache").encode(CAPTIONS)
  assert make.loads == 1  # Another process's, as it were.
  for a, b in zip(first, again, strict=True):
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(a, b)
  files = list((tmp_path / "cache").iterdir())
  assert len(files) == 4  # Of five captions, two equal; nothing left behind.
  size = 18 * CFG.width * (2 if cfg == HALF else 4)
  assert 0 < max(f.stat().st_size for f in files) - size < 300


CHANGES = (
  dict(identity="step 2"),
  dict(system_prompt="Draw: "),
  dict(cfg=HALF),
  dict(tokenizer="other"),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
def test_another_encoder_has_other_files(make, tmp_path, change):
  change = dict(change)
  make(cache=tmp_path).encode(["a fox"])
  name = change.pop("tokenizer", None)
  encoder = make(**change, cache=tmp_path)
  if name:
    encoder.tokenizer.identity = name
  encoder.encode(["a fox"])
  assert make.loads == 2
  assert len(list(tmp_path.iterdir())) == 2


DAMAGE = {
  "empty": lambda data: b"",
  "cut": lambda data: data[:-5],
  "digest": lambda data: data[:20],
  "foreign": lambda data: b"not features at all" * 20,
  "flipped": lambda data: data[:-8] + bytes([data[-8] ^ 64]) + data[-7:],
  "unreadable": lambda data: hashlib.sha256(b"x").digest() + b"x",
  "nothing": lambda data: hashlib.sha256(b"").digest(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_file_is_computed_again_and_replaced(make, tmp_path, damage):
  (expected,) = make(cache=tmp_path).encode(["a fox"])
  (path,) = tmp_path.iterdir()
  good = path.read_bytes()
  path.write_bytes(DAMAGE[damage](good))
  (found,) = make(cache=tmp_path).encode(["a fox"])
  assert make.loads == 2
  np.testing.assert_array_equal(found, expected)
  assert path.read_bytes() == good
  assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_leaves_nothing(
  make, tmp_path, monkeypatch
):
  def full(self, data):
    self.touch()
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("pathlib.Path.write_bytes", full)
  with pytest.raises(OSError, match="No space left"):
    make(cache=tmp_path).encode(["a fox"])
  assert list(tmp_path.iterdir()) == []


def test_a_system_prompt_stands_first_as_it_is(make):
  encoder = make(system_prompt="Draw <It>: ", clean="strip")
  (found,) = encoder.encode([" A Fox "])
  close(found, alone("Draw <It>: a fox"))


@pytest.mark.parametrize(
  ("clean", "expected"),
  [
    (None, " See www.fox.com: A Fox "),
    ("strip", "see www.fox.com: a fox"),
    ("clean", "see: a fox"),
  ],
)
def test_captions_are_cleaned(make, clean, expected):
  encoder = make(clean=clean)
  encoder.encode([" See www.fox.com: A Fox "])
  assert encoder.tokenizer.seen == [expected]


def test_features_that_overflow_are_refused(make, tmp_path):
  cfg = dataclasses.replace(CFG, dtype="float16", embed_scale=6e4)
  encoder = make(cfg, cache=tmp_path / "cache")
  with pytest.raises(FloatingPointError, match=r"'a fox'.*float16; use bf"):
    encoder.encode(["a fox"])
  assert not list((tmp_path / "cache").iterdir())  # Not to be met again.


def test_tokens_beyond_the_table_are_refused(make):
  with pytest.raises(ValueError, match=r"'a 雪' has token 38634.* 160"):
    make().encode(["a 雪"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(clean="wash"), "clean = 'wash'"),
    (dict(batch_size=0), "batch_size = 0"),
    (dict(pad_multiple=0), "pad_multiple = 0"),
    (dict(cfg=dataclasses.replace(CFG, vocab=20)), "20 rows"),
  ],
)
def test_options_that_cannot_be(make, options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_one_caption_is_not_a_list(make):
  with pytest.raises(TypeError, match=r"\['a fox'\]"):
    make().encode("a fox")


def test_no_captions(make):
  assert make().encode([]) == []
  assert make.loads == 0
  with pytest.raises(ValueError, match="no captions"):
    make()([])


UTF8 = Utf8Config(width=8, byte_width=4, word_bytes=4, max_words=16)


def test_the_embedded_encoder_has_the_same_interface():
  init = Utf8Encoder(UTF8).init(jax.random.key(0), tokenize(UTF8, "7")[None])
  params = nn.unbox(init)["params"]
  encoder = Utf8Captions(UTF8, params)
  found = encoder.encode(["3 1 / 4 1", "", "a red fox of snow"])
  assert encoder.width == 8
  assert [len(features) for features in found] == [5, 1, 5]
  codes = tokenize(UTF8, "3 1 / 4 1")[None]
  expected = Utf8Encoder(UTF8).apply({"params": params}, codes)[0]
  np.testing.assert_allclose(found[0], expected, atol=1e-6)
  features, mask = encoder(["3 1 / 4 1", ""])
  assert features.shape == (2, 8, 8) and mask.sum(axis=1).tolist() == [5, 1]
  np.testing.assert_array_equal(features[0, :5], found[0])
  assert not features[~mask].any()
  assert encoder.encode([]) == []
