"""The network of the image autoencoder: sizes, bounds, memory."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support.autoencoder import SMALL

from lumina_jax.encoders import vae
from lumina_jax.encoders.vae import PUBLISHED, VaeConfig, boxed_shapes


@pytest.mark.parametrize(
  ("name", "channels", "scale", "shift"),
  [
    ("sd", 4, 0.18215, 0.0),
    ("sdxl", 4, 0.13025, 0.0),
    ("sd3", 16, 1.5305, 0.0609),
    ("flux", 16, 0.3611, 0.1159),
  ],
)
def test_published_configs(name, channels, scale, shift):
  cfg = PUBLISHED[name]
  assert (cfg.latent_channels, cfg.factor) == (channels, 8)
  assert (cfg.scaling_factor, cfg.shift_factor) == (scale, shift)
  # Scale and shift are the only differences between the pairs.
  pair = PUBLISHED["sd" if channels == 4 else "sd3"]
  same = dict(scaling_factor=scale, shift_factor=shift)
  assert cfg == dataclasses.replace(pair, **same)


@pytest.mark.parametrize(
  ("name", "size"), [("sd", 83_653_863), ("sd3", 83_819_683)]
)
def test_published_parameter_counts(name, size):
  shapes = nn.unbox(boxed_shapes(PUBLISHED[name]))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == size


def test_the_middle_needs_no_matrix_of_scores():
  """For an image of 1024 x 1024, with 8 times fewer latents a side."""
  cfg = VaeConfig(widths=(8, 8, 8, 8), norm_groups=4, layers=1)
  params = nn.unbox(boxed_shapes(cfg))
  z = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)
  decode = jax.jit(vae.decode, static_argnums=0)
  program = decode.lower(cfg, params, z).as_text()
  sizes = [
    np.prod([int(n) for n in shape.split("x")])
    for shape in re.findall(r"tensor<([\dx]+)xf32>", program)
  ]
  largest = 8 * 1024 * 1024  # The last activations.
  assert max(sizes) == largest < (128 * 128) ** 2
  assert "stablehlo.while" in program  # Attention runs over chunks of queries.


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(widths=(16, 36)), r"widths = \(16, 36\).*norm_groups = 8"),
    (dict(widths=()), r"widths = \(\)"),
    (dict(layers=0), "layers = 0 must be positive"),
    (dict(latent_channels=0), "latent_channels = 0"),
    (dict(scaling_factor=0.0), "scaling_factor = 0.0"),
    (dict(dtype="float16"), "dtype 'float16': use one of float32, bfloat16"),
  ],
)
def test_invalid_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **changes)
