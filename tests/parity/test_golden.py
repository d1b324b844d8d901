"""The backbone against tensors computed with the original PyTorch code."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

from lumina_jax.backbone import DiT, ModelConfig
from lumina_jax.interop.names import from_lumina
from lumina_jax.packing import pack, stack
from lumina_jax.tokens import PATCH, Condition

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"

NEXT = dict(
  raster=False, separators=False, sandwich=True, shift=False, tanh_gate=True
)
VARIANTS = {
  "flag_dit_t2i": {},
  "next_dit_t2i": NEXT | dict(final_shift=False),
  "flag_dit_imagenet": dict(separators=False),
  "next_dit_imagenet": NEXT | dict(pre_norm_scale=False),
}
TEXT = [name for name in VARIANTS if name.endswith("t2i")]


class Golden:
  """One golden model: our config and parameters, its tensors."""

  def __init__(self, name: str):
    def read(file):
      return load_file(GOLDEN / name / f"{file}.safetensors")

    kwargs = json.loads((GOLDEN / name / "config.json").read_text())["kwargs"]
    self.tensors, self.training = read("tensors"), read("training")
    self.cfg = ModelConfig(
      patch=(kwargs["patch_size"],) * 2,
      channels=kwargs["in_channels"],
      width=kwargs["dim"],
      depth=kwargs["n_layers"],
      heads=kwargs["n_heads"],
      kv_heads=kwargs.get("n_kv_heads", kwargs["n_heads"]),
      cond_width=min(kwargs["dim"], 1024),
      text_width=kwargs.get("cap_feat_dim", 0),
      num_labels=kwargs.get("num_classes", 0),
      ffn_multiple=kwargs["multiple_of"],
      qk_norm=kwargs["qk_norm"],
      dtype="float32",
      **VARIANTS[name],
    )
    self.grid = self.cfg.grid(*self.tensors["x"].shape[-2:])
    self.tokens = self.rows(self.tensors["x"])
    self.condition = Condition(time=self.tensors["t"][:, None])
    if self.cfg.text_width:
      self.condition = self.condition._replace(
        text=self.tensors["cap_feats"], text_segments=self.tensors["cap_mask"]
      )
    else:
      labels = self.tensors["y"].astype(np.int32)
      self.condition = self.condition._replace(label=labels[:, None])
    shapes = jax.eval_shape(
      DiT(self.cfg).init, jax.random.key(0), self.tokens, self.condition
    )
    self.shapes = nn.unbox(shapes)["params"]
    self.params = from_lumina(read("weights"), self.cfg, self.shapes)

    self.loss_and_grads = jax.jit(jax.value_and_grad(self.loss))

  def rows(self, x):
    """Channels-first latents of one size, a sample to a row."""
    return stack([self.row([a], self.grid.num_tokens) for a in x])

  def row(self, samples, length):
    """Channels-first latents of any sizes, packed into one row."""
    grids = [self.cfg.grid(*a.shape[1:]) for a in samples]
    patches = [
      grid.tokenize(np.moveaxis(a, 0, -1))
      for grid, a in zip(grids, samples, strict=True)
    ]
    cfg = self.cfg
    return pack(grids, patches, length, cfg.patch_dim, cfg.position_axes)

  def velocity(self, params, tokens, condition):
    with jax.default_matmul_precision("highest"):
      return DiT(self.cfg).apply({"params": params}, tokens, condition)

  def loss(self, params):
    target = self.rows(self.training["target"]).patches
    error = self.velocity(params, self.tokens, self.condition) - target
    real = (self.tokens.kinds == PATCH)[..., None]
    return jnp.where(real, error**2, 0).sum() / self.training["target"].size


@pytest.fixture(
  scope="module",
  params=[
    name if name in TEXT else pytest.param(name, marks=pytest.mark.slow)
    for name in VARIANTS
  ],
)
def golden(request):
  return Golden(request.param)


@pytest.fixture(scope="module", params=TEXT)
def golden_text(request):
  return Golden(request.param)


def test_velocity_is_that_of_the_original(golden):
  out = jax.jit(golden.velocity)(golden.params, golden.tokens, golden.condition)
  out = np.moveaxis(golden.grid.detokenize(np.asarray(out)), -1, 1)
  np.testing.assert_allclose(out, golden.tensors["out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [0, 7])
def test_ragged_batch_packed_into_one_row(golden_text, padding):
  golden, tensors = golden_text, golden_text.tensors
  samples = [tensors[f"ragged_x{i}"] for i in range(3)]
  grids = [golden.cfg.grid(*x.shape[1:]) for x in samples]
  lengths = [grid.num_tokens for grid in grids]
  row = golden.row(samples, sum(lengths) + padding)
  number = np.arange(1, 4, dtype=np.int32)[:, None]
  condition = Condition(
    time=tensors["t"][None],
    text=tensors["cap_feats"].reshape(1, -1, golden.cfg.text_width),
    text_segments=(tensors["cap_mask"] * number).reshape(1, -1),
  )
  out = jax.jit(golden.velocity)(golden.params, stack([row]), condition)
  pieces = np.split(np.asarray(out)[0], np.cumsum(lengths))
  for i, (grid, piece) in enumerate(zip(grids, pieces[:3], strict=True)):
    latents = np.moveaxis(grid.detokenize(piece), -1, 0)
    np.testing.assert_allclose(
      latents, tensors[f"ragged_out{i}"], atol=1e-5, rtol=0
    )
  assert not np.any(pieces[3])


def test_gradients_are_those_of_the_original(golden):
  _, grads = golden.loss_and_grads(golden.params)
  theirs = {
    key.removeprefix("grad."): value
    for key, value in golden.training.items()
    if key.startswith("grad.")
  }
  theirs = from_lumina(theirs, golden.cfg, golden.shapes)
  errors = jax.tree.map(
    lambda a, b: float(np.linalg.norm(a - b)), grads, theirs
  )
  for (path, error), want in zip(
    jax.tree_util.tree_leaves_with_path(errors),
    jax.tree.leaves(theirs),
    strict=True,
  ):
    # Where symmetry makes a gradient zero, both hold rounding noise only.
    assert error <= max(1e-4 * np.linalg.norm(want), 1e-6), path


def test_ten_adamw_steps_follow_the_original(golden):
  tx = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
  params, losses = jax.tree.map(jnp.asarray, golden.params), []
  state = tx.init(params)
  for _ in range(10):
    loss, grads = golden.loss_and_grads(params)
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
    losses.append(loss)
  losses.append(golden.loss_and_grads(params)[0])
  np.testing.assert_allclose(
    losses, golden.training["adamw_losses"], atol=1e-5, rtol=0
  )


def test_missing_and_unknown_keys_are_named():
  golden = Golden("flag_dit_t2i")
  state = load_file(GOLDEN / "flag_dit_t2i" / "weights.safetensors")
  surplus = state | {"surplus": state["pad_token"]}
  with pytest.raises(ValueError, match="surplus"):
    from_lumina(surplus, golden.cfg, golden.shapes)
  del state["layers.1.attention.wq.weight"]
  with pytest.raises(KeyError, match=r"layers\.1\.attention\.wq\.weight"):
    from_lumina(state, golden.cfg, golden.shapes)
