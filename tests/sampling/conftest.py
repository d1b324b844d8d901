"""Tiny pipelines that the tests of sampling share; none of them changes one."""

import pytest
from support.configs import randomised, small_config

from lumina_jax import LuminaPipeline


@pytest.fixture(scope="session")
def pixels():
  """Grey pixels of any size, read off the prompt; words are trained along."""
  return randomised(small_config())


@pytest.fixture(scope="session")
def latents(diffusers_folder):
  """Latents of an autoencoder; a frozen language model reads prompts."""
  return LuminaPipeline.from_pretrained(diffusers_folder, dtype="float32")
