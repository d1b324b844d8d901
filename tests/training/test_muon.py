"""Muon against its definition, for the kernels as they lie in the network."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util
from support.configs import tiny_config

from lumina_jax.backbone import shapes
from lumina_jax.backbone.config import PUBLISHED
from lumina_jax.training import muon
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.optimizer_config import OptimizerConfig

STEPS = 10
CFG = OptimizerConfig(
  learning_rate=1e-2,
  warmup_steps=0,
  decay="constant",
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  weight_decay=0.1,
  clip=1.0,
  ema_decay=0.99,
  name="muon",
)
COEFFICIENTS = 3.4445, -4.7750, 2.0315

# Shape of all layers -> axes of one matrix, (inputs, outputs).
KERNELS = {
  "backbone/blocks/attention/query/kernel": ((3, 6, 2, 4), (6, 8)),
  "backbone/blocks/attention/out/kernel": ((3, 2, 4, 6), (8, 6)),
  "backbone/blocks/feed_forward/up/kernel": ((3, 6, 10), (6, 10)),
  "backbone/blocks/feed_forward_time/down_kernel": ((3, 2, 10, 6), (10, 6)),
}
OTHERS = {
  "backbone/blocks/modulation/project/kernel": (3, 6, 24),
  "backbone/blocks/feed_forward_time/router/kernel": (3, 6, 2),
  "backbone/blocks/attention/query_norm/scale": (3, 2, 4),
  "backbone/patch_embed/kernel": (4, 6),
  "backbone/final/kernel": (6, 4),
  "text_encoder/spelling/kernel": (4, 3, 6),
}


def random(seed):
  rng = np.random.default_rng(seed)
  shapes = {name: shape for name, (shape, _) in KERNELS.items()} | OTHERS
  flat = {
    name: rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }
  return traverse_util.unflatten_dict(flat, sep="/")


def flatten(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def run(cfg, updates=2):
  """The last updates, by name, and the parameters before them."""
  tx, params = make_optimizer(cfg, STEPS), random(0)
  state, update = tx.init(params), jax.jit(tx.update)
  for number in range(1, updates + 1):
    before = params
    changes, state = update(random(number), state, params)
    params = optax.apply_updates(params, changes)
  return flatten(changes), flatten(before), state


def orthogonal(matrix):
  """Five Newton-Schulz iterations, in float64."""
  a, b, c = COEFFICIENTS
  x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
  x = x / (np.linalg.norm(x) + 1e-8)
  for _ in range(5):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x.T if matrix.shape[0] > matrix.shape[1] else x


def momentum(gradients, beta):
  """Nesterov momentum after all gradients, each corrected for its start."""
  m = np.zeros_like(gradients[0])
  for gradient in gradients:
    m = beta * m + (1 - beta) * gradient
  count = len(gradients)
  ahead = beta * m / (1 - beta ** (count + 1))
  return ahead + (1 - beta) * gradients[-1] / (1 - beta**count)


def test_every_layer_and_expert_moves_by_its_own_orthogonal_momentum():
  changes, before, _ = run(CFG)
  norms = [
    math.sqrt(sum((x.astype(float) ** 2).sum() for x in tree.values()))
    for tree in (flatten(random(1)), flatten(random(2)))
  ]
  for name, (_, (rows, columns)) in KERNELS.items():
    clipped = [
      flatten(random(number))[name].astype(float) / norms[number - 1]
      for number in (1, 2)
    ]
    matrices = momentum(clipped, CFG.momentum).reshape(-1, rows, columns)
    assert len(matrices) in (3, 6)
    scale = 0.2 * math.sqrt(max(rows, columns))
    expected = np.stack([scale * orthogonal(m) for m in matrices])
    found = changes[name].reshape(-1, rows, columns) / -CFG.learning_rate
    found = found - CFG.weight_decay * before[name].reshape(-1, rows, columns)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    values = np.linalg.svd(found / scale, compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_stack_of_kernels_moves_as_each_matrix_by_itself():
  """Optax's own Muon, which takes single matrices."""
  cfg = dataclasses.replace(CFG, clip=1e9)
  changes, _, _ = run(cfg, updates=1)
  single = optax.contrib.muon(
    cfg.learning_rate,
    weight_decay=cfg.weight_decay,
    consistent_rms=0.2,
  )
  update = jax.jit(single.update)
  for name, (_, (rows, columns)) in KERNELS.items():
    start, gradients = (
      flatten(random(seed))[name].reshape(-1, rows, columns) for seed in (0, 1)
    )
    found = changes[name].reshape(-1, rows, columns)
    for layer in range(len(start)):
      state = single.init(start[layer])
      expected, _ = update(gradients[layer], state, start[layer])
      np.testing.assert_allclose(found[layer], expected, atol=1e-6)


def test_all_else_is_adamw_bit_for_bit():
  ours, _, state = run(CFG)
  adamw, _, _ = run(dataclasses.replace(CFG, name="adamw"))
  for name in OTHERS:
    np.testing.assert_array_equal(ours[name], adamw[name])
  for name in KERNELS:
    assert np.abs(ours[name] - adamw[name]).max() > 1e-4
  # One moment of a hidden matrix, two of what is AdamW's.
  counts = [x.size for x in jax.tree.leaves(state) if x.shape not in ((), (3,))]
  one = sum(math.prod(shape) for shape, _ in KERNELS.values())
  two = sum(map(math.prod, OTHERS.values()))
  assert sum(counts) == one + 2 * two


def test_updates_are_as_large_as_those_of_adamw():
  """What Liu et al. choose the factor for: a root mean square of 0.2."""
  changes, _, _ = run(dataclasses.replace(CFG, weight_decay=0.0))
  for name in KERNELS:
    size = np.sqrt(np.mean(changes[name] ** 2)) / CFG.learning_rate
    assert 0.1 < size < 0.3


def test_muon_goes_by_groups_and_frozen_too():
  kernel, other = "blocks/feed_forward/up/kernel", "blocks/attention/out"
  cfg = dataclasses.replace(
    CFG, clip=1e9, groups=((kernel, 0.5, 0.0),), frozen=(other,)
  )
  changes, _, _ = run(cfg, updates=1)
  plain = dataclasses.replace(CFG, clip=1e9, weight_decay=0.0)
  alone, _, _ = run(plain, updates=1)
  name = f"backbone/{kernel}"
  np.testing.assert_allclose(changes[name], 0.5 * alone[name], atol=1e-7)
  assert not changes["backbone/blocks/attention/out/kernel"].any()


def test_a_gradient_of_zero_moves_nothing():
  """At the start gates are zero, and so are most gradients."""
  cfg = dataclasses.replace(CFG, weight_decay=0.0)
  tx, params = make_optimizer(cfg, STEPS), random(0)
  zeros = jax.tree.map(np.zeros_like, params)
  changes, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(changes))


def matrices(cfg):
  """Name in a block -> (kernels, inputs, outputs) of what Muon takes."""
  found = {}
  for path, leaf in traverse_util.flatten_dict(shapes(cfg), sep="/").items():
    if how := muon.matrix_axes(f"backbone/{path}"):
      inputs, outputs = how.split(leaf.ndim)
      sizes = [leaf.shape[: how.stacked]] + [
        [leaf.shape[axis] for axis in axes] for axes in (inputs, outputs)
      ]
      found[path.removeprefix("blocks/")] = tuple(map(math.prod, sizes))
  return found


@pytest.mark.parametrize(
  "name", ["next_dit_t2i_2b_gqa", "flag_dit_audio", "next_dit_moe_both_600m"]
)
def test_matrices_of_published_networks(name):
  cfg = PUBLISHED[name]
  layers, width, hidden = cfg.depth, cfg.width, cfg.ffn_width
  narrow = cfg.kv_heads * cfg.head_dim
  expected = {
    "attention/query/kernel": (layers, width, width),
    "attention/key/kernel": (layers, width, narrow),
    "attention/value/kernel": (layers, width, narrow),
    "attention/out/kernel": (layers, width, width),
  }
  if cfg.text_width:
    expected |= {
      f"attention/text_{part}/kernel": (layers, cfg.text_width, narrow)
      for part in ("key", "value")
    }
  for block in cfg.feed_forwards:
    kernel = "_kernel" if cfg.routing else "/kernel"
    count = layers * (cfg.experts or 1)
    up, down = (count, width, hidden), (count, hidden, width)
    for part, shape in (("gate", up), ("up", up), ("down", down)):
      expected[f"{block}/{part}{kernel}"] = shape
  assert matrices(cfg) == expected


def test_every_kernel_of_a_block_was_thought_of():
  """A new one shall not fall to AdamW unseen."""
  routed = dict(model__routing=("time", "token"), model__experts=4)
  for config in (
    tiny_config("text_to_image", model__text_query=True),
    tiny_config("imagenet", **routed),
  ):
    names = flatten(config.network.shapes())
    left = {
      name.split("blocks/")[1].split("/")[-2]
      for name in names
      if "blocks/" in name
      and name.endswith("kernel")
      and not muon.matrix_axes(name)
    }
    assert left <= {"project", "router"}  # project is the modulation's.
