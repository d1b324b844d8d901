"""Encodes latents while a mesh of several devices is active.

Argument: a folder to write to.
"""

import pathlib
import sys

import jax
import numpy as np
from support.tiny_pipeline import write_vae

from lumina_jax.interop.vae import load_vae
from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.pretrained.data_encoders import LatentEncoder

folder = write_vae(pathlib.Path(sys.argv[1]) / "vae")
encoder = LatentEncoder(load_vae(folder))
pixels = np.random.default_rng(0).uniform(-1, 1, (32, 48, 3)).astype(np.float32)
alone = encoder.to_latents(pixels, np.random.default_rng(1))
with jax.set_mesh(make_mesh(MeshConfig())):
  inside = encoder.to_latents(pixels, np.random.default_rng(1))
np.testing.assert_array_equal(alone, inside)
print(jax.device_count(), "devices")
