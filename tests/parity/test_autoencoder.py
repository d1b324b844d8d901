"""AutoencoderKL of diffusers: the same numbers, and folders both ways."""

import dataclasses

import jax
import numpy as np
import pytest
from support.autoencoder import random_params, uniform

from lumina_jax.encoders import autoencoder
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.vae import PUBLISHED
from lumina_jax.interop.vae import load_vae, save_vae
from lumina_jax.interop.vae_names import config_json

pytestmark = [pytest.mark.e2e, pytest.mark.parity]

# The published configs with an eighth of the width and one layer a block.
SMALL = dict(widths=(16, 32, 32, 32), norm_groups=8, layers=1)
VARIANTS = {
  name: dataclasses.replace(cfg, **SMALL) for name, cfg in PUBLISHED.items()
}
# More layers a block, no attention.
VARIANTS["plain"] = dataclasses.replace(
  PUBLISHED["sd"],
  widths=(8, 24),
  norm_groups=4,
  layers=2,
  mid_attention=False,
  post_quant_conv=False,
)


@pytest.fixture(autouse=True, scope="module")
def oracles():
  """Imports slow packages only if a test of this file runs."""
  global torch, diffusers
  torch = pytest.importorskip(
    "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
  )
  diffusers = pytest.importorskip("diffusers", reason="diffusers is an oracle")


@pytest.fixture(autouse=True, scope="module")
def full_precision():
  with jax.default_matmul_precision("highest"):
    yield


EXAMPLES = [
  pytest.param(name, marks=[pytest.mark.long] * (name != "sd"))
  for name in VARIANTS
]


@pytest.fixture(scope="module", params=EXAMPLES)
def pair(request, tmp_path_factory):
  """A model of diffusers with random parameters, and its folder."""
  cfg = VARIANTS[request.param]
  model = diffusers.AutoencoderKL.from_config(config_json(cfg)).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if parameter.ndim > 1:
        parameter.normal_(std=parameter[0].numel() ** -0.5)
      else:
        parameter.normal_(mean=float("norm" in name), std=0.3)
  folder = tmp_path_factory.mktemp(request.param) / "vae"
  model.save_pretrained(folder, max_shard_size="200kB")
  return cfg, model, folder


def first(x) -> "torch.Tensor":
  """Moves channels first."""
  return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def last(x) -> np.ndarray:
  return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_close(actual, expected, atol=1e-4):
  assert np.abs(expected).mean() > 0.03  # There is something to compare.
  np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


IMAGES = uniform(2, 32, 48, 3)


def test_encode_and_decode_are_those_of_diffusers(pair):
  cfg, model, folder = pair
  ours = load_vae(folder.parent)
  assert ours.cfg == cfg
  with torch.no_grad():
    theirs = model.encode(first(IMAGES)).latent_dist
    both = autoencoder._moments(ours.params, IMAGES, cfg=cfg)
    mean, logvar = np.split(both, 2, axis=-1)
    assert_close(mean, last(theirs.mean), 2e-5)
    assert_close(logvar, last(theirs.logvar), 2e-5)
    shift = model.config.shift_factor or 0
    latents = ours.encode(IMAGES)
    expected = (last(theirs.mode()) - shift) * model.config.scaling_factor
    assert_close(latents, expected, 2e-5)
    # Equal noise gives equal samples.
    key = jax.random.key(1)
    noise = first(jax.random.normal(key, latents.shape))
    sample = last(theirs.mean + theirs.std * noise)
    expected = (sample - shift) * model.config.scaling_factor
    assert_close(ours.encode(IMAGES, key), expected, 5e-5)
    z = first(latents) / model.config.scaling_factor + shift
    assert_close(ours.decode(latents), last(model.decode(z).sample), 5e-5)


def test_diffusers_loads_what_we_save(tmp_path, pair):
  cfg, _, _ = pair
  ours = Autoencoder(cfg, random_params(cfg, seed=1))
  save_vae(ours, tmp_path / "vae")
  model, report = diffusers.AutoencoderKL.from_pretrained(
    tmp_path / "vae", output_loading_info=True
  )
  assert not any(report.values()), report
  z = uniform(2, 32 // cfg.factor, 48 // cfg.factor, cfg.latent_channels)
  latents = (z - cfg.shift_factor) * cfg.scaling_factor
  with torch.no_grad():
    expected = last(model.eval().decode(first(z)).sample)
  # It saves the same again.
  model.save_pretrained(tmp_path / "again")
  again = load_vae(tmp_path / "again")
  assert again.cfg == cfg
  jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
  assert_close(again.decode(latents), expected, 5e-5)
