"""The cosine transform of blocks: 8 samples are a latent of 8 channels."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class DctConfig:
  block: int
  dtype: str = "float32"


class Dct:
  """See `lumina_jax.encoders.codec.Codec`."""

  channels = 1

  def __init__(self, cfg):
    n = np.arange(cfg.block)
    basis = np.cos(np.pi / cfg.block * n[:, None] * (n + 0.5))
    self.params = basis / np.linalg.norm(basis, axis=1, keepdims=True)
    self.cfg, self.factors, self.latent_channels = cfg, (cfg.block,), cfg.block

  def encode(self, x, key=None):
    blocks = jnp.reshape(x, (*x.shape[:-2], -1, self.cfg.block))
    return blocks @ self.params.T

  def decode(self, z):
    return jnp.reshape(z @ self.params, (*z.shape[:-2], -1, 1))


def load(folder, mesh=None):
  values = json.loads((folder / "config.json").read_text())
  return Dct(DctConfig(values["block"]))


def save(codec, folder):
  folder.mkdir()
  values = {"_class_name": "Dct", "block": codec.cfg.block}
  (folder / "config.json").write_text(json.dumps(values))
