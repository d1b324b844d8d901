"""The image autoencoder: sizes, shapes, pieces, precision, memory."""

import dataclasses
import json
import logging
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support.configs import fake_devices

from lumina_jax.encoders import autoencoder, vae
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.convolution import Conv
from lumina_jax.encoders.vae import PUBLISHED, VaeConfig, boxed_shapes

ROOT = pathlib.Path(__file__).parents[2]
WIDTHS = dict(widths=(16, 32), norm_groups=8, layers=1)
SMALL = VaeConfig(**WIDTHS, shift_factor=0.2)


moments = jax.jit(vae.moments, static_argnums=0)
picture = jax.jit(vae.picture, static_argnums=0)


def random_params(cfg, seed=0):
  """Parameters none of which is zero, one or like another."""
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    x = rng.standard_normal(shape.shape, np.float32)
    match path[-1].key:
      case "kernel":
        return x * np.float32(np.prod(shape.shape[:-1]) ** -0.5)
      case "scale":
        return 1 + np.float32(0.3) * x
    return np.float32(0.3) * x

  return jax.tree_util.tree_map_with_path(leaf, nn.unbox(boxed_shapes(cfg)))


def uniform(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def small():
  return Autoencoder(SMALL, random_params(SMALL))


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def count(cfg) -> int:
  return sum(x.size for x in jax.tree.leaves(nn.unbox(boxed_shapes(cfg))))


@pytest.mark.parametrize(
  ("name", "channels", "scale", "shift", "size"),
  [
    ("sd", 4, 0.18215, 0.0, 83_653_863),
    ("sdxl", 4, 0.13025, 0.0, 83_653_863),
    ("sd3", 16, 1.5305, 0.0609, 83_819_683),
    ("flux", 16, 0.3611, 0.1159, 83_819_683),
  ],
)
def test_published(name, channels, scale, shift, size):
  cfg = PUBLISHED[name]
  assert (cfg.latent_channels, cfg.factor) == (channels, 8)
  assert (cfg.scaling_factor, cfg.shift_factor) == (scale, shift)
  assert count(cfg) == size


@pytest.mark.slow
def test_any_axes_stand_before_and_frames_do_not_mix(small):
  video = uniform(2, 3, 8, 12, 3)
  latents = small.encode(video)
  assert latents.shape == (2, 3, 4, 6, 4) and latents.dtype == jnp.float32
  for frame in ((0, 0), (1, 2)):
    alone = small.encode(video[frame])
    assert alone.shape == (4, 6, 4)
    np.testing.assert_allclose(alone, latents[frame], atol=1e-5)
  images = small.decode(latents)
  assert images.shape == video.shape and images.dtype == jnp.float32
  alone = small.decode(latents[1, 2])
  np.testing.assert_allclose(alone, images[1, 2], atol=1e-5)


@pytest.mark.slow
def test_latents_are_shifted_and_scaled(small):
  images = uniform(1, 8, 8, 3)
  mean, _ = moments(SMALL, small.params, images)
  expected = (mean - 0.2) * 0.18215
  np.testing.assert_allclose(small.encode(images), expected, atol=1e-6)
  undone = picture(SMALL, small.params, mean)
  np.testing.assert_allclose(
    small.decode(expected), undone, atol=1e-4, rtol=1e-4
  )


def test_a_sample_is_mean_and_deviation(small):
  images, key = uniform(1, 8, 8, 3), jax.random.key(3)
  mean, logvar = moments(SMALL, small.params, images)
  z = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
  found = small.encode(images, key)
  np.testing.assert_allclose(found, (z - 0.2) * 0.18215, atol=1e-6)
  assert np.abs(found - small.encode(images)).max() > 0.01


def test_the_log_variance_is_clamped(small):
  params = jax.tree.map(np.copy, small.params)
  for value, clamped in ((90.0, 20.0), (-90.0, -30.0)):
    params["encoder"]["quant"]["bias"][4:] = value
    _, logvar = moments(SMALL, params, uniform(1, 8, 8, 3))
    assert (np.asarray(logvar) == clamped).all()


@pytest.mark.slow
def test_frames_in_batches_are_the_same_and_one_program(small, caplog):
  images, key = uniform(5, 12, 8, 3), jax.random.key(0)
  at_once = small.encode(images, key)
  with caplog.at_level(logging.INFO, autoencoder.__name__):
    found = small.encode(images, key, frames_at_once=2)
    pictures = small.decode(found, frames_at_once=2)
    small.encode(images, frames_at_once=2)
  np.testing.assert_allclose(found, at_once, atol=1e-5)
  np.testing.assert_allclose(pictures, small.decode(at_once), atol=1e-4)
  assert [record.args for record in caplog.records] == [
    ((2, 12, 8, 3),),
    ((2, 6, 4, 4),),
  ]


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (1, 1)])
def test_doubling_is_a_convolution_of_repeated_pixels(rows, columns):
  x = uniform(2, rows, columns, 3)
  same, double = (Conv(5, jnp.float32, size=s) for s in ("same", "double"))
  params = nn.unbox(same.init(jax.random.key(0), x))
  params["params"]["bias"] = uniform(5)
  expected = same.apply(params, x.repeat(2, axis=1).repeat(2, axis=2))
  np.testing.assert_allclose(double.apply(params, x), expected, atol=1e-5)


def test_bfloat16_is_close_and_returns_float32(small):
  cfg = dataclasses.replace(SMALL, dtype="bfloat16")
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), small.params)
  half, images = Autoencoder(cfg, params), uniform(1, 8, 8, 3)
  latents = small.encode(images)
  for found, expected in (
    (half.encode(images), latents),
    (half.decode(latents), small.decode(latents)),
  ):
    assert found.dtype == jnp.float32
    error = np.abs(found - expected).mean() / np.abs(expected).mean()
    assert 1e-4 < error < 0.05


def test_the_middle_needs_no_matrix_of_scores():
  """Of a picture of 1024 x 1024 at 8 times fewer latents a side."""
  cfg = VaeConfig(widths=(8, 8, 8, 8), norm_groups=4, layers=1)
  params = nn.unbox(boxed_shapes(cfg))
  z = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)
  program = autoencoder._picture.lower(params, z, cfg=cfg).as_text()
  sizes = [
    np.prod([int(n) for n in shape.split("x")])
    for shape in re.findall(r"tensor<([\dx]+)xf32>", program)
  ]
  largest = 8 * 1024 * 1024  # The last activations.
  assert max(sizes) == largest < (128 * 128) ** 2
  assert "stablehlo.while" in program  # It attends, a few queries at a time.


CODE = """
import json, sys
sys.path.insert(0, "tests")
import jax, numpy as np
from encoders.test_vae import SMALL, random_params, uniform
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.parallel.mesh import MeshConfig, ROWS, make_mesh, replicated
mesh = make_mesh(MeshConfig(data=2, fsdp=2))
params = random_params(SMALL)
many = Autoencoder(SMALL, jax.device_put(params, replicated(mesh)))
latents = uniform(4, 4, 4, 4)
expected = np.asarray(Autoencoder(SMALL, params).decode(latents))
found = []
for frames in (4, 1):
  x, spec = latents[:frames], ROWS if frames > 1 else jax.P()
  with jax.set_mesh(mesh):
    out = many.decode(jax.device_put(x, jax.NamedSharding(mesh, spec)))
  error = np.abs(np.asarray(out) - expected[:frames]).max()
  found.append([float(error), out.addressable_shards[0].data.shape[0]])
print(json.dumps(found))
"""


@pytest.mark.slow
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
  found = json.loads(done.stdout.splitlines()[-1])
  assert all(error < 1e-4 for error, _ in found)
  assert [frames for _, frames in found] == [1, 1]


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((1, 9, 8, 3), "9 x 8.* multiples of 2"),
    ((1, 8, 7, 3), "8 x 7.* multiples of 2"),
    ((1, 8, 8, 4), r"\(1, 8, 8, 4\).*columns, 3\]"),
    ((8, 3), r"\(8, 3\).*columns, 3\]"),
    ((0, 8, 8, 3), r"\(0, 8, 8, 3\).*none of them 0"),
  ],
)
def test_images_that_are_none_are_refused(small, shape, message):
  with pytest.raises(ValueError, match=message):
    small.encode(np.zeros(shape, np.float32))


def test_other_wrong_input_is_refused(small):
  images, latents = uniform(1, 8, 8, 3), uniform(1, 4, 4, 4)
  with pytest.raises(ValueError, match=r"uint8.*127\.5 - 1"):
    small.encode(np.zeros((1, 8, 8, 3), np.uint8))
  with pytest.raises(ValueError, match=r"latents.*columns, 4\]"):
    small.decode(latents[..., :3])
  for tile in (14, 17, 0, -16):
    with pytest.raises(ValueError, match=f"tile = {tile} must.*least 16 pix"):
      small.encode(images, tile=tile)
    with pytest.raises(ValueError, match=f"tile = {tile} must"):
      small.decode(latents, tile=tile)
  with pytest.raises(ValueError, match="frames_at_once = 0 must be positive"):
    small.decode(latents, frames_at_once=0)


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
def test_configs_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **changes)
