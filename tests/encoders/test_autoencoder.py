"""The codec of images: scale, noise, batches, tiles, precision, devices.

Images of 8 x 8 alone and in pairs share their programs over the file.
"""

import dataclasses
import json
import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.autoencoder import SMALL, random_params, uniform
from support.configs import ROOT, fake_devices

from lumina_jax.encoders import autoencoder, vae
from lumina_jax.encoders.autoencoder import Autoencoder

IMAGE = uniform(1, 8, 8, 3)


@pytest.fixture(scope="module")
def small():
  return Autoencoder(SMALL, random_params(SMALL))


@pytest.fixture
def in_pairs(small):
  return Autoencoder(SMALL, small.params, frames_at_once=2)


def test_latents_are_shifted_and_scaled(small, monkeypatch):
  moments = autoencoder._moments(small.params, IMAGE, cfg=SMALL)
  mean, _ = jnp.split(moments, 2, axis=-1)
  latents = small.encode(IMAGE)
  assert latents.dtype == jnp.float32
  np.testing.assert_allclose(latents, (mean - 0.2) * 0.18215, atol=1e-6)
  # The decoder receives the mean.
  monkeypatch.setattr(vae, "decode", lambda cfg, params, z: z)
  z = autoencoder._decode.__wrapped__(small.params, latents, cfg=SMALL)
  np.testing.assert_allclose(z, mean, atol=1e-5)


def test_a_key_samples_from_mean_and_deviation(small):
  key = jax.random.key(3)
  moments = autoencoder._moments(small.params, IMAGE, cfg=SMALL)
  mean, logvar = jnp.split(moments, 2, axis=-1)
  z = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
  latents = small.encode(IMAGE, key)
  np.testing.assert_allclose(latents, (z - 0.2) * 0.18215, atol=1e-6)
  assert np.abs(latents - small.encode(IMAGE)).max() > 0.01


def test_the_log_variance_is_clamped(small):
  params = jax.tree.map(np.copy, small.params)
  for value, clamped in ((90.0, 20.0), (-90.0, -30.0)):
    params["encoder"]["quant"]["bias"][4:] = value
    moments = autoencoder._moments(params, IMAGE, cfg=SMALL)
    assert (np.asarray(moments)[..., 4:] == clamped).all()


def test_batches_of_any_axes_are_as_one_by_one(small, in_pairs):
  images = uniform(3, 1, 8, 8, 3)
  latents = in_pairs.encode(images)
  assert latents.shape == (3, 1, 4, 4, 4)
  decoded = in_pairs.decode(latents)
  assert decoded.shape == images.shape and decoded.dtype == jnp.float32
  for n in range(3):
    alone = small.encode(images[n, 0])
    np.testing.assert_allclose(alone, latents[n, 0], atol=1e-5)
    alone = small.decode(latents[n, 0])
    np.testing.assert_allclose(alone, decoded[n, 0], atol=1e-4)


def test_noise_does_not_depend_on_batches(small, in_pairs):
  images, key = uniform(3, 8, 8, 3), jax.random.key(0)
  noise = in_pairs.encode(images, key) - in_pairs.encode(images)
  in_pairs.frames_at_once = 1
  expected = in_pairs.encode(images, key) - in_pairs.encode(images)
  np.testing.assert_allclose(noise, expected, atol=1e-5)


def test_one_program_serves_images_of_any_size_in_tiles(small, caplog):
  tiled = Autoencoder(SMALL, small.params, tile=16, frames_at_once=1)
  with caplog.at_level(logging.INFO, autoencoder.__name__):
    for shape in ((2, 9, 12), (16, 9), (10, 10)):
      decoded = tiled.decode(np.zeros((*shape, 4), np.float32))
      assert decoded.shape[-3:] == (2 * shape[-2], 2 * shape[-1], 3)
  assert [record.args for record in caplog.records] == [((1, 8, 8, 4),)]


def test_bfloat16_is_close_and_returns_float32(small):
  cfg = dataclasses.replace(SMALL, dtype="bfloat16")
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), small.params)
  half, latents = Autoencoder(cfg, params), small.encode(IMAGE)
  for actual, expected in (
    (half.encode(IMAGE), latents),
    (half.decode(latents), small.decode(latents)),
  ):
    assert actual.dtype == jnp.float32
    error = np.abs(actual - expected).mean() / np.abs(expected).mean()
    assert 1e-4 < error < 0.05


CODE = """
import json, sys
sys.path.insert(0, "tests")
import jax, numpy as np
from support.autoencoder import SMALL, random_params, uniform
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.parallel.mesh import MeshConfig, ROWS, make_mesh, replicated
mesh = make_mesh(MeshConfig(data=2, fsdp=2))
params = random_params(SMALL)
many = Autoencoder(SMALL, jax.device_put(params, replicated(mesh)))
latents = uniform(4, 4, 4, 4)
expected = np.asarray(Autoencoder(SMALL, params).decode(latents))
results = []
for frames in (4, 1):
  x, spec = latents[:frames], ROWS if frames > 1 else jax.P()
  with jax.set_mesh(mesh):
    out = many.decode(jax.device_put(x, jax.NamedSharding(mesh, spec)))
  error = np.abs(np.asarray(out) - expected[:frames]).max()
  results.append([float(error), out.addressable_shards[0].data.shape[0]])
print(json.dumps(results))
"""


@pytest.mark.e2e
def test_frames_divide_over_devices():
  done = subprocess.run(
    [sys.executable, "-c", CODE],
    cwd=ROOT,
    env=fake_devices(4),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  results = json.loads(done.stdout.splitlines()[-1])
  assert all(error < 1e-4 for error, _ in results)
  assert [frames for _, frames in results] == [1, 1]


@pytest.mark.parametrize(
  ("method", "x", "message"),
  [
    ("encode", np.zeros((1, 9, 8, 3)), "9 x 8.* multiples of 2"),
    ("encode", np.zeros((1, 8, 7, 3)), "8 x 7.* multiples of 2"),
    ("encode", np.zeros((1, 8, 8, 4)), r"\(1, 8, 8, 4\).*columns, 3\]"),
    ("encode", np.zeros((8, 3)), r"\(8, 3\).*columns, 3\]"),
    ("encode", np.zeros((0, 8, 8, 3)), r"\(0, 8, 8, 3\).*no empty axis"),
    ("encode", np.zeros((8, 8, 3), np.uint8), r"images.*uint8.*127\.5 - 1"),
    ("decode", np.zeros((1, 4, 4, 3)), r"latents.*columns, 4\]"),
    ("decode", [[[0.0]]], "latents of type list: expected an array"),
  ],
)
def test_invalid_inputs_are_refused(small, method, x, message):
  with pytest.raises(ValueError, match=message):
    getattr(small, method)(x)


def test_videos_have_an_axis_of_frames(small):
  video = Autoencoder(SMALL, small.params, frame_axes=1)
  with pytest.raises(
    ValueError, match=r"\(8, 8, 3\).*frames, rows, columns, 3"
  ):
    video.encode(np.zeros((8, 8, 3), np.float32))


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    *(
      ("tile", tile, f"tile = {tile} must be a multiple of 2.*least 16 pix")
      for tile in (14, 17, 0, -16)
    ),
    ("tile", "all", "tile = 'all': must be a whole number"),
    ("frames_at_once", 0, "frames_at_once = 0: must be at least 1"),
    ("frames_at_once", 1.5, "frames_at_once = 1.5: must be a whole number"),
  ],
)
def test_invalid_options_are_refused_where_they_are_set(
  small, name, value, message
):
  with pytest.raises(ValueError, match=message):
    Autoencoder(SMALL, small.params, **{name: value})
  codec = Autoencoder(SMALL, small.params)
  with pytest.raises(ValueError, match=message):
    setattr(codec, name, value)
  assert getattr(codec, name) is None
