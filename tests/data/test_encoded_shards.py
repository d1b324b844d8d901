"""Frozen encoders give the same latents in shards and in training."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from support.shards import FakeImages, captions, grid
from support.tiny_pipeline import VOCAB, WIDTH, write_language, write_vae
from support.tokenizer import write_tokenizer

from data_pipelines import shard_folder
from data_pipelines.shard_job import ShardJob
from data_pipelines.shard_source import ShardSource
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.source import Draw, Stream
from data_pipelines.write_shards import write_shards
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.interop.vae import load_vae
from lumina_jax.pretrained import data_encoders

COUNT = 11
SHIFT = 0.3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Folders of a tiny autoencoder and a tiny language model."""
  top = tmp_path_factory.mktemp("encoders")
  write_vae(top / "vae", shift_factor=SHIFT)
  write_language(top / "text_encoder")
  write_tokenizer(top / "tokenizer", vocab=VOCAB)
  return top


@pytest.fixture(scope="module")
def latents(folders):
  return data_encoders.load_latent_encoder(folders, batch_size=4)


@pytest.fixture(scope="module")
def features(folders):
  return data_encoders.load_feature_encoder(folders, max_tokens=16)


def write(folder, latents, features, process=0, processes=1):
  settings = {
    "channels": latents.channels,
    "autoencoder": latents.identity,
    "text_encoder": features.identity,
  }
  job = ShardJob(
    [FakeImages(bad=(3,))],
    captions(COUNT, each=2),
    4,
    latents.moments,
    features,
    batch_size=4,
  )
  writer = ShardWriter(folder, settings, job.shards, process)
  return write_shards(job, writer, 0.1, (), process, processes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, latents, features):
  folder = tmp_path_factory.mktemp("shards") / "whole"
  assert write(folder, latents, features) == []
  return folder


def batch(count):
  return np.stack(
    [FakeImages().pixels(Draw(0, 3 * r, 0))[0] for r in range(count)]
  )


def test_moments_are_those_of_the_autoencoder(folders, latents):
  pixels, autoencoder = batch(5), load_vae(folders)
  mean, std = latents.moments(pixels)
  mode = autoencoder.encode(pixels)
  np.testing.assert_allclose(mean, mode, atol=1e-5)
  # It samples mean + std eps, with the random numbers of JAX.
  key = jax.random.key(0)
  sampled = autoencoder.encode(pixels, key)
  eps = jax.random.normal(key, mean.shape)
  np.testing.assert_allclose(sampled, mean + std * eps, atol=1e-5)
  assert (std > 0).all()


def test_latents_do_not_depend_on_the_batch(latents):
  pixels = batch(7)
  whole = latents.moments(pixels)
  for n in range(7):
    alone = latents.moments(pixels[n : n + 1])
    for a, b in zip(alone, whole, strict=True):
      np.testing.assert_allclose(a[0], b[n], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "shape", [(1, 5, 4, 3), (1, 4, 5, 3), (1, 4, 4, 1)], ids=str
)
def test_samples_of_other_shapes_are_refused(latents, shape):
  with pytest.raises(ValueError, match="takes 3 channels and sides that are"):
    latents.moments(np.zeros(shape, np.float32))


def test_features_do_not_depend_on_earlier_captions(features):
  words = ["a red fox", "an orange cat sits on a wooden chair", "a red fox"]
  first = features(words)
  features(["two dogs on the beach at night", words[1]])
  for a, b in zip(features(words), first, strict=True):
    assert a.dtype == ml_dtypes.bfloat16
    assert a.shape[1] == WIDTH
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(first[0], first[2])


def test_two_processes_write_what_one_does(tmp_path, folder, latents, features):
  # The second process starts first.
  assert write(tmp_path, latents, features, 1, 2)
  assert write(tmp_path, latents, features, 0, 2) == []
  for path in folder.iterdir():
    assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_shards_give_the_samples_of_unencoded_data(folder, latents, features):
  source = ShardSource(folder, grid, dropout=0.25)
  kept = [r for r in range(COUNT) if r != 3]
  captions_seen = set()
  for epoch in range(3):
    for number, r in enumerate(kept):
      sample = source.sample(Draw(epoch, number, number))
      rng = np.random.default_rng([Stream.SHARD, 0, epoch, number])
      rng.integers(2), rng.random()
      expected = latents.to_latents(FakeImages().pixels(Draw(0, r, r))[0], rng)
      actual = sample.grid.detokenize(sample.patches)
      assert actual.dtype == expected.dtype == np.float32
      # float16 has 11 bits of mean and deviation.
      np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=4e-3)
      (text,) = features([sample.caption])
      np.testing.assert_allclose(
        sample.text, text.astype(np.float32), rtol=2e-2, atol=2e-2
      )
      captions_seen.add(sample.caption)
  assert "" in captions_seen


def test_a_folder_has_the_settings_of_its_encoders(folder, features):
  source = ShardSource(folder, grid)
  frozen = TextFeaturesConfig(WIDTH, max_tokens=16)
  assert features.cfg == frozen
  source.check_network(4, dataclasses.asdict(frozen))
  made_with = shard_folder.read_manifest(folder)["made_with"]
  assert made_with["autoencoder"]["shift_factor"] == SHIFT
  assert made_with["autoencoder"]["factor"] == 2


def test_the_identity_depends_on_the_weights(folders, latents, tmp_path):
  write_vae(tmp_path / "same", shift_factor=SHIFT)
  same = data_encoders.load_latent_encoder(tmp_path / "same")
  assert same.identity["sha256"] == latents.identity["sha256"]
  path = tmp_path / "same" / "diffusion_pytorch_model.safetensors"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  other = data_encoders.load_latent_encoder(tmp_path / "same")
  assert other.identity["sha256"] != latents.identity["sha256"]
