"""Frozen encoders, in shards and while training: the same latents."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from support.pictures import Fake, captions, grid
from support.tiny_pipeline import VOCAB, WIDTH, write_language, write_vae
from support.tokenizer import write_tokenizer

from data_pipelines import shards
from data_pipelines.shard_job import Job
from data_pipelines.shard_source import SAMPLE, ShardSource
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.source import Draw
from lumina_jax import encode
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.interop.vae import load_vae
from lumina_jax.pretrained import data_encoders as encoded

COUNT = 11
SHIFT = 0.3


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Folders of a tiny autoencoder and a tiny language model."""
  top = tmp_path_factory.mktemp("encoders")
  write_vae(top / "vae", shift_factor=SHIFT)
  write_language(top / "text_encoder")
  write_tokenizer(top / "tokenizer", vocab=VOCAB)
  return top


@pytest.fixture(scope="module")
def pictures(folders):
  return encoded.load_pictures(folders, batch_size=4)


@pytest.fixture(scope="module")
def texts(folders):
  return encoded.load_captions(folders, max_tokens=16)


def write(folder, pictures, texts, process=0, processes=1):
  settings = {
    "channels": pictures.channels,
    "autoencoder": pictures.identity,
    "text_encoder": texts.identity,
  }
  job = Job(
    [Fake(bad=(3,))],
    captions(COUNT, each=2),
    4,
    pictures.moments,
    texts,
    batch_size=4,
  )
  writer = ShardWriter(folder, settings, job.shards, process)
  return encode.encode(job, writer, 0.1, (), process, processes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures, texts):
  folder = tmp_path_factory.mktemp("shards") / "whole"
  assert write(folder, pictures, texts) == []
  return folder


def batch(count):
  return np.stack([Fake().pixels(Draw(0, 3 * r, 0))[0] for r in range(count)])


def test_moments_are_those_of_the_autoencoder(folders, pictures):
  pixels, autoencoder = batch(5), load_vae(folders)
  mean, std = pictures.moments(pixels)
  mode = autoencoder.encode(pixels)
  np.testing.assert_allclose(mean, mode, atol=1e-5)
  # Its own draws are mean + std eps, with JAX's numbers.
  key = jax.random.key(0)
  drawn = autoencoder.encode(pixels, key)
  eps = jax.random.normal(key, mean.shape)
  np.testing.assert_allclose(drawn, mean + std * eps, atol=1e-5)
  assert (std > 0).all()


def test_a_picture_does_not_depend_on_its_batch(pictures):
  pixels = batch(7)
  whole = pictures.moments(pixels)
  for n in range(7):
    alone = pictures.moments(pixels[n : n + 1])
    for a, b in zip(alone, whole, strict=True):
      np.testing.assert_allclose(a[0], b[n], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "shape", [(1, 5, 4, 3), (1, 4, 5, 3), (1, 4, 4, 1)], ids=str
)
def test_other_pictures_are_refused(pictures, shape):
  with pytest.raises(ValueError, match="takes 3 channels and sides that are"):
    pictures.moments(np.zeros(shape, np.float32))


def test_features_do_not_depend_on_what_came_before(texts):
  words = ["a red fox", "an orange cat sits on a wooden chair", "a red fox"]
  first = texts(words)
  texts(["two dogs on the beach at night", words[1]])
  for a, b in zip(texts(words), first, strict=True):
    assert a.dtype == ml_dtypes.bfloat16
    assert a.shape[1] == WIDTH
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(first[0], first[2])


def test_two_processes_write_what_one_does(tmp_path, folder, pictures, texts):
  # The second one first, and each with what the other has not seen.
  assert write(tmp_path, pictures, texts, 1, 2)
  assert write(tmp_path, pictures, texts, 0, 2) == []
  for path in folder.iterdir():
    assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_training_from_shards_is_training_from_pictures(
  folder, pictures, texts
):
  source = ShardSource(folder, grid, dropout=0.25)
  kept = [r for r in range(COUNT) if r != 3]
  seen = set()
  for epoch in range(3):
    for number, r in enumerate(kept):
      sample = source.sample(Draw(epoch, number, number))
      rng = np.random.default_rng([SAMPLE, 0, epoch, number])
      rng.integers(2), rng.random()
      expected = pictures.to_latents(Fake().pixels(Draw(0, r, r))[0], rng)
      found = sample.grid.detokenize(sample.patches)
      assert found.dtype == expected.dtype == np.float32
      # float16 has 11 bits of mean and deviation.
      np.testing.assert_allclose(found, expected, rtol=2e-3, atol=4e-3)
      (features,) = texts([sample.caption])
      np.testing.assert_allclose(
        sample.text, features.astype(np.float32), rtol=2e-2, atol=2e-2
      )
      seen.add(sample.caption)
  assert "" in seen


def test_a_folder_tells_what_it_was_made_with(folder, texts):
  source = ShardSource(folder, grid)
  frozen = FrozenTextConfig(WIDTH, max_tokens=16)
  assert texts.cfg == frozen
  source.check(4, WIDTH, frozen)
  with pytest.raises(ValueError, match="max_tokens = 16 there, 256 in"):
    source.check(4, WIDTH, dataclasses.replace(frozen, max_tokens=256))
  made_with = shards.read_manifest(folder)["made_with"]
  assert made_with["autoencoder"]["shift_factor"] == SHIFT
  assert made_with["autoencoder"]["factor"] == 2


def test_weights_are_told_apart(folders, pictures, tmp_path):
  write_vae(tmp_path / "same", shift_factor=SHIFT)
  same = encoded.load_pictures(tmp_path / "same")
  assert same.identity["sha256"] == pictures.identity["sha256"]
  path = tmp_path / "same" / "diffusion_pytorch_model.safetensors"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  other = encoded.load_pictures(tmp_path / "same")
  assert other.identity["sha256"] != pictures.identity["sha256"]
