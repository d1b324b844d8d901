"""Captions to features: batches, memory, the cache on disk, cleaning.

Only the first test runs a language model; the others run a table of embeddings
in its place.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lumina_jax.encoders import caption_encoder, language
from lumina_jax.encoders.caption_encoder import CaptionEncoder
from lumina_jax.encoders.language_config import LanguageConfig

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
TABLE = np.random.default_rng(0).standard_normal((160, 8), np.float32)


class Letters:
  """A tokenizer: 1, then one token per letter."""

  identity = "letters"

  def __init__(self):
    self.calls = []

  def __call__(self, caption):
    self.calls.append(caption)
    return np.array([1, *map(ord, caption)], np.int32)

  def check(self, vocab):
    if vocab < 128:
      raise ValueError(f"{vocab} rows")


class Maker:
  """Makes encoders; counts loads of parameters and records shapes of batches.

  Attributes:
    loads: how often parameters were loaded.
    batches: rows and columns of all batches.
  """

  def __init__(self, monkeypatch):
    self.loads, self.batches = 0, []
    monkeypatch.setattr(caption_encoder, "encode_tokens", self.embed)

  def __call__(self, cfg=CFG, **options):
    def load():
      self.loads += 1
      return {"embed": TABLE}

    return CaptionEncoder(cfg, Letters(), load, **options)

  def embed(self, cfg, params, tokens, segments):
    self.batches.append(tokens.shape)
    scaled = jnp.asarray(params["embed"][tokens], cfg.dtype) * cfg.embed_scale
    return jnp.where(segments[..., None] > 0, scaled.astype(jnp.float32), 0)


@pytest.fixture
def make(monkeypatch):
  return Maker(monkeypatch)


def embedded(caption):
  return TABLE[Letters()(caption)]


def test_features_are_those_of_the_language_model():
  rng = np.random.default_rng(0)
  shapes = nn.unbox(language.boxed_shapes(CFG))
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, np.float32), shapes
  )
  encoder = CaptionEncoder(CFG, Letters(), lambda: params)
  captions = CAPTIONS[:4]  # A batch of the shape of `row`: one program.
  for caption, features in zip(captions, encoder.encode(captions), strict=True):
    row = np.zeros((2, 4, 32), np.int32)
    row[0, 0, : len(caption) + 1] = Letters()(caption)
    row[1, 0, : len(caption) + 1] = 1
    alone = language.encode_tokens(CFG, params, *row)[0, : len(caption) + 1]
    assert np.abs(alone).mean() > 0.1
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, alone, atol=1e-5)


def test_features_are_of_the_tokens_in_order(make):
  encoder = make(batch_size=2)
  assert encoder.width == CFG.width
  for caption, features in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
    np.testing.assert_array_equal(features, embedded(caption))
    assert encoder.length(caption) == len(features)
  assert len(make.batches) == 2
  np.testing.assert_array_equal(encoder.encode_one("dog"), embedded("dog"))


def test_equal_captions_are_encoded_once(make):
  encoder = make()
  encoder.encode(CAPTIONS)
  assert encoder.tokenizer.calls == list(dict.fromkeys(CAPTIONS))
  assert len(make.batches) == 1


def test_batches_have_few_shapes(make):
  encoder = make(batch_size=6)
  lengths = (2, 3, 5, 7, 8, 9, 11, 12, 14, 15, 17, 20, 23, 31)
  for count in (1, 2, 3, 4, 5, 6, 7):
    captions = [f"{chr(96 + count)}" * (n - 1) for n in lengths[:count]]
    encoder.encode(captions)
  encoder.encode(["z" * (n - 1) for n in (*lengths[::2], *lengths[1::2])])
  shapes = {(r, s) for r in (1, 2, 4, 6) for s in (8, 16, 32)}
  assert set(make.batches) <= shapes
  assert make.batches[-3:] == [(6, 16), (6, 32), (2, 32)]  # By length.


def test_parameters_load_when_needed_and_are_freed(make):
  encoder = make()
  assert make.loads == 0 and not encoder.loaded
  first = encoder.encode(["a fox"])
  encoder.encode(["dogs"])
  assert make.loads == 1 and encoder.loaded
  encoder.free()
  assert not encoder.loaded
  again = encoder.encode(["a fox", "dogs"])  # From memory.
  assert make.loads == 1 and again[0] is first[0]
  assert encoder.is_cached(["a fox"]) and not encoder.is_cached(["cats"])
  encoder.encode(["cats"])
  assert make.loads == 2
  encoder.clear_memory()
  assert not encoder.is_cached(["cats"])


def test_memory_is_bounded_and_keeps_recent_captions(make, monkeypatch):
  monkeypatch.setattr(caption_encoder, "MEMORY_SIZE", 2)
  encoder = make()
  for caption in ("a", "b", "a", "c"):
    encoder.encode([caption])
  assert encoder.is_cached(["a", "c"]) and not encoder.is_cached(["b"])
  encoder.reserve(3)
  encoder.reserve(1)
  encoder.encode(["b"])
  assert encoder.is_cached(["a", "b", "c"])


def test_callers_cannot_change_features(make):
  (features,) = make().encode(["a fox"])
  with pytest.raises(ValueError, match="read-only"):
    features[0] = 0


@pytest.mark.parametrize("cfg", [CFG, HALF], ids=lambda cfg: cfg.dtype)
def test_the_cache_returns_the_same_bits(make, tmp_path, cfg):
  first = make(cfg, cache=tmp_path / "cache").encode(CAPTIONS)
  assert make.loads == 1
  again = make(cfg, cache=tmp_path / "cache").encode(CAPTIONS)
  assert make.loads == 1  # As in another process.
  for a, b in zip(first, again, strict=True):
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(a, b)
  files = list((tmp_path / "cache").iterdir())
  assert len(files) == 4  # Two of five captions are equal; no temporary file.
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
def test_a_damaged_file_is_computed_again_and_replaced(make, tmp_path, damage):
  (expected,) = make(cache=tmp_path).encode(["a fox"])
  (path,) = tmp_path.iterdir()
  good = path.read_bytes()
  path.write_bytes(DAMAGE[damage](good))
  (actual,) = make(cache=tmp_path).encode(["a fox"])
  assert make.loads == 2
  np.testing.assert_array_equal(actual, expected)
  assert path.read_bytes() == good
  assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_leaves_nothing(
  make, tmp_path, monkeypatch
):
  def full(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("lumina_jax.files.atomic.os.fsync", full)
  with pytest.raises(OSError, match="No space left"):
    make(cache=tmp_path).encode(["a fox"])
  assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_to_is_refused_at_once(make, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match=r"cannot write to .*file/cache"):
    make(cache=tmp_path / "file" / "cache")


def test_a_system_prompt_precedes_captions_as_it_is(make):
  encoder = make(system_prompt="Draw <It>: ", cleaning="strip")
  (features,) = encoder.encode([" A Fox "])
  np.testing.assert_array_equal(features, embedded("Draw <It>: a fox"))


@pytest.mark.parametrize(
  ("cleaning", "expected"),
  [
    ("", " See www.fox.com: A Fox "),
    ("strip", "see www.fox.com: a fox"),
    ("clean", "see: a fox"),
  ],
)
def test_captions_are_cleaned(make, cleaning, expected):
  encoder = make(cleaning=cleaning)
  encoder.encode([" See www.fox.com: A Fox "])
  assert encoder.tokenizer.calls == [expected]


def test_features_that_overflow_are_refused(make, tmp_path):
  cfg = dataclasses.replace(CFG, dtype="float16", embed_scale=6e4)
  encoder = make(cfg, cache=tmp_path / "cache")
  with pytest.raises(FloatingPointError, match=r"'a fox'.*float16; use bf"):
    encoder.encode(["a fox"])
  assert not list((tmp_path / "cache").iterdir())  # No later call finds them.


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(cleaning="wash"), "cleaning = 'wash': use one of '', 'strip', 'cl"),
    (dict(batch_size=0), "batch_size = 0"),
    (dict(cfg=dataclasses.replace(CFG, vocab=20)), "20 rows"),
  ],
)
def test_invalid_options_are_refused(make, options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


@pytest.mark.parametrize(
  ("captions", "error", "message"),
  [
    ("a fox", TypeError, r"\['a fox'\]"),
    (["a 雪"], ValueError, r"'a 雪' has token 38634.* 160"),
  ],
)
def test_invalid_captions_are_refused(make, captions, error, message):
  with pytest.raises(error, match=message):
    make().encode(captions)


def test_no_captions(make):
  assert make().encode([]) == []
  assert make.loads == 0
