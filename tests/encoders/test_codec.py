"""Codecs follow the protocol."""

import pytest
from support.autoencoder import SMALL, random_params

from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.codec import Codec
from lumina_jax.parallel import processes


@pytest.fixture(scope="module")
def autoencoder():
  return Autoencoder(SMALL, random_params(SMALL))


def test_codecs_follow_the_protocol(autoencoder):
  codecs = {
    (2, 2): autoencoder,
    (1, 2, 2): Autoencoder(SMALL, autoencoder.params, frame_axes=1),
    (1, 1, 2, 2): Autoencoder(SMALL, autoencoder.params, frame_axes=2),
  }
  for factors, codec in codecs.items():
    assert isinstance(codec, Codec)
    assert codec.factors == factors
    assert (codec.channels, codec.latent_channels) == (3, 4)
    assert codec.params is autoencoder.params and codec.cfg is SMALL
    with processes.use_mesh_of(codec.params):
      pass
  assert not isinstance(object(), Codec)
