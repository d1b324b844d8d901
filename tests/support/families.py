"""Small random networks of every family of the original code."""

import functools

import jax
import numpy as np
import pytest
from flax import traverse_util

from lumina_jax import backbone
from lumina_jax import convert as command
from lumina_jax.backbone import ModelConfig
from lumina_jax.backbone.config import (
  FLAG_IMAGENET,
  FLAG_T2I,
  NEXT_IMAGENET,
  NEXT_T2I,
)
from lumina_jax.interop import convert, layout, native, weights
from lumina_jax.interop.layout import backbone_layout
from lumina_jax.interop.lumina import MEDIA, lumina_names

shapes = functools.cache(backbone.shapes)

TEXT = dict(text_width=24)
CLASSES = dict(num_labels=10)


def small(**fields) -> ModelConfig:
  """A network whose feed-forward fields a lone file determines."""
  common = dict(
    patch=(2, 2),
    channels=4,
    width=32,
    depth=2,
    heads=4,
    kv_heads=4,
    cond_width=32,
    ffn_multiple=96,
    dtype="float32",
  )
  return ModelConfig(**common | fields)


def experts(*routing: str) -> ModelConfig:
  return small(**NEXT_IMAGENET | CLASSES, routing=routing, experts=3)


FAMILIES = {
  "flag_text": small(**FLAG_T2I | TEXT),
  "next_text": small(**NEXT_T2I | TEXT, kv_heads=2),
  "flag_imagenet": small(**FLAG_IMAGENET | CLASSES),
  "next_imagenet": small(**NEXT_IMAGENET | CLASSES, kv_heads=1),
  "moe_time": experts("time"),
  "moe_token": experts("token"),
  "moe_both": experts("time", "token"),
  "audio": small(
    **FLAG_T2I | TEXT | dict(separators=False, pad_token=False),
    patch=(1,),
    channels=5,
    qk_norm=False,
    zero_text_pool=False,
    time_scale=1000.0,
  ),
}
NEXT = FAMILIES["next_text"]
MEDIUM = dict.fromkeys(FAMILIES, "image") | {"audio": "audio"}
# Arguments of the original's constructors that a lone file needs.
NEEDED_ARGS = {
  "flag_text": {},
  "next_text": {},
  "flag_imagenet": {"n_heads": 4},
  "next_imagenet": {"n_heads": 4},
  "moe_time": {"n_heads": 4, "model": "Next-DiT-MoE/time"},
  "moe_token": {"n_heads": 4, "model": "Next-DiT-MoE/space"},
  "moe_both": {"n_heads": 4},
  "audio": {"time_scale": 1000},
}


def random_like(tree, seed: int = 0):
  """Random arrays of the same shapes, none of them zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), tree
  )


def random_params(cfg: ModelConfig, seed: int = 0):
  """Random parameters of a network."""
  return random_like(shapes(cfg), seed)


def state_dict(
  cfg: ModelConfig, params, medium: str = "image"
) -> dict[str, np.ndarray]:
  """Parameters as a state dict of the original code."""
  names, sigma = lumina_names(cfg, medium), MEDIA[medium].sigma
  theirs = backbone_layout(cfg, names, sigma)
  return {
    key: np.ascontiguousarray(array)
    for path, x in traverse_util.flatten_dict(params).items()
    for key, array in theirs.write(path, x)
  }


def assert_same(found, expected) -> None:
  """Checks that two trees have the same names, dtypes and bits."""
  found, expected = (
    traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected)
  )
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    assert found[name].dtype == x.dtype, name
    np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.fixture(autouse=True, scope="module")
def shapes_once():
  """Traces each network once: tracing dominates the time of these tests."""
  with pytest.MonkeyPatch.context() as patch:
    for module in (command, convert, layout, native, weights):
      patch.setattr(module, "shapes", shapes)
    yield
