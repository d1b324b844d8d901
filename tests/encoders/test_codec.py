"""Codecs: the protocol, and codecs of images on frames."""

import jax
import numpy as np
import pytest
from support.autoencoder import SMALL, random_params, uniform

from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.codec import Codec, Framewise
from lumina_jax.parallel import processes

VIDEO = uniform(2, 3, 8, 12, 3)


class Halves:
  """A codec of images: pairs of pixels become channels."""

  factors, channels, latent_channels = (2, 2), 3, 12
  params, cfg = {}, None

  def __init__(self):
    self.batches = []

  def encode(self, x, key=None):
    self.batches.append(len(x))
    *rest, H, W, C = x.shape
    z = x.reshape(*rest, H // 2, 2, W // 2, 2, C)
    z = np.moveaxis(z, -4, -3).reshape(*rest, H // 2, W // 2, 4 * C)
    return z if key is None else z + jax.random.normal(key, z.shape)

  def decode(self, z):
    self.batches.append(len(z))
    *rest, h, w, C = z.shape
    x = np.moveaxis(z.reshape(*rest, h, w, 2, 2, C // 4), -3, -4)
    return x.reshape(*rest, 2 * h, 2 * w, C // 4)


@pytest.fixture(scope="module")
def autoencoder():
  return Autoencoder(SMALL, random_params(SMALL))


def test_codecs_follow_the_protocol(autoencoder):
  codecs = {
    (2, 2): autoencoder,
    (1, 2, 2): Framewise(autoencoder),
    (1, 1, 2, 2): Framewise(Framewise(autoencoder)),
  }
  for factors, codec in codecs.items():
    assert isinstance(codec, Codec)
    assert codec.factors == factors
    assert (codec.channels, codec.latent_channels) == (3, 4)
    assert codec.params is autoencoder.params and codec.cfg is SMALL
    with processes.use_mesh_of(codec.params):
      pass
  assert not isinstance(object(), Codec)
  video = Framewise(Autoencoder(SMALL, autoencoder.params))
  video.tile = 16.0
  assert video.codec.tile == video.tile == 16


@pytest.mark.parametrize(
  ("frames_at_once", "batches"),
  [(None, [6]), (8, [6]), (4, [4, 4]), (1, [1] * 6)],
)
def test_frames_run_in_full_batches(frames_at_once, batches):
  codec = Halves()
  framewise = Framewise(codec, frames_at_once)
  latents = framewise.encode(VIDEO)
  assert codec.batches == batches
  np.testing.assert_array_equal(latents, Halves().encode(VIDEO))
  np.testing.assert_array_equal(framewise.decode(latents), VIDEO)
  assert codec.batches == 2 * batches


def test_a_key_samples_each_frame_with_its_own():
  key = jax.random.key(7)
  latents = Framewise(Halves(), frames_at_once=4).encode(VIDEO, key)
  for n, frame in enumerate(VIDEO.reshape(6, 8, 12, 3)):
    expected = Halves().encode(frame[None], jax.random.fold_in(key, n))[0]
    np.testing.assert_array_equal(latents.reshape(6, 4, 6, 12)[n], expected)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: setattr(Framewise(Halves()), "frames_at_once", 0.5),
      "frames_at_once = 0.5: must be a whole number",
    ),
    (lambda: Framewise(Halves(), 0), "frames_at_once = 0: must be at least 1"),
    (
      lambda: Framewise(Halves()).encode(VIDEO[0, 0]),
      r"\(8, 12, 3\).*axis of frames",
    ),
    (
      lambda: Framewise(Halves()).decode(np.zeros((4, 6, 12))),
      r"\(4, 6, 12\).*axis of frames",
    ),
  ],
)
def test_invalid_calls_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
