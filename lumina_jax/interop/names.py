"""Where each of our parameters stands in the original's state dict.

One table of names a layout; `from_lumina` reads through it. In PyTorch a
linear weight is (out, in), blocks are numbered rather than stacked, a patch
enters as (C, p, p) and leaves as (p, p, 2C) whose second half of channels (the
sigma of an older objective) is never used; here kernels are (in, out), blocks
are stacked, patches are (p, p, C) on both sides and there is no sigma.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import einops
import numpy as np

from lumina_jax.backbone import ModelConfig


class Name(NamedTuple):
  """The original's name of one parameter and what its array stands for."""

  key: str  # "{i}" numbers the block.
  kind: str  # "matrix", "vector", "table", "patch_in", "patch_out", ...


def lumina_names(cfg: ModelConfig) -> dict[tuple[str, ...], Name]:
  """The original Lumina layout: our path -> its name."""
  table: dict[str, tuple[str, str]] = {
    "patch_embed/kernel": ("x_embedder.weight", "patch_in"),
    "patch_embed/bias": ("x_embedder.bias", "vector"),
    **_linear("time_embed/first", "t_embedder.mlp.0"),
    **_linear("time_embed/second", "t_embedder.mlp.2"),
    **_linear("final_modulation/project", "final_layer.adaLN_modulation.1"),
    "final/kernel": ("final_layer.linear.weight", "patch_out"),
    "final/bias": ("final_layer.linear.bias", "patch_out_bias"),
  }
  if cfg.text_width:
    table["pad"] = ("pad_token", "vector")
    table |= _norm("text_pool/norm", "cap_embedder.0")
    table |= _linear("text_pool/project", "cap_embedder.1")
  if cfg.num_labels:
    table["label_embed"] = ("y_embedder.embedding_table.weight", "table")
  if cfg.separators:
    table["nextline"] = ("eol_token", "vector")
  table |= {
    f"blocks/{ours}": (f"layers.{{i}}.{theirs}", kind)
    for ours, (theirs, kind) in _block_names(cfg).items()
  }
  return {
    tuple(path.split("/")): Name(key, kind)
    for path, (key, kind) in table.items()
  }


def _block_names(cfg: ModelConfig) -> dict[str, tuple[str, str]]:
  table = _linear("modulation/project", "adaLN_modulation.1")
  matrices = {
    "attention/query": "attention.wq",
    "attention/key": "attention.wk",
    "attention/value": "attention.wv",
    "attention/out": "attention.wo",
    "feed_forward/gate": "feed_forward.w1",
    "feed_forward/down": "feed_forward.w2",
    "feed_forward/up": "feed_forward.w3",
  }
  norms = {"query": "q", "key": "k"}
  if cfg.text_width:
    matrices["attention/text_key"] = "attention.wk_y"
    matrices["attention/text_value"] = "attention.wv_y"
    norms["text_key"] = "ky"
    table["attention/text_norm/scale"] = ("attention_y_norm.weight", "vector")
    table["attention/text_gate"] = ("attention.gate", "vector")
  for ours, theirs in matrices.items():
    table[f"{ours}/kernel"] = (f"{theirs}.weight", "matrix")
  if cfg.qk_norm:
    for ours, theirs in norms.items():
      table |= _norm(f"attention/{ours}_norm", f"attention.{theirs}_norm")
  for ours, theirs in _sublayer_norms(cfg).items():
    table[f"{ours}/scale"] = (f"{theirs}.weight", "vector")
  return table


def _sublayer_norms(cfg: ModelConfig) -> dict[str, str]:
  """RMSNorms; a number tells before from after only where both have weights."""
  short = {"attention": "attention", "feed_forward": "ffn"}
  if not cfg.sandwich:
    return {f"{ours}_norm": f"{theirs}_norm" for ours, theirs in short.items()}
  if not cfg.pre_norm_scale:
    return {
      f"{ours}_post_norm": f"{theirs}_norm" for ours, theirs in short.items()
    }
  return {
    f"{ours}{place}_norm": f"{theirs}_norm{number}"
    for ours, theirs in short.items()
    for place, number in (("", 1), ("_post", 2))
  }


def _linear(ours: str, theirs: str) -> dict[str, tuple[str, str]]:
  return {
    f"{ours}/kernel": (f"{theirs}.weight", "matrix"),
    f"{ours}/bias": (f"{theirs}.bias", "vector"),
  }


def _norm(ours: str, theirs: str) -> dict[str, tuple[str, str]]:
  return {
    f"{ours}/scale": (f"{theirs}.weight", "vector"),
    f"{ours}/bias": (f"{theirs}.bias", "vector"),
  }


def from_lumina(
  state: Mapping[str, np.ndarray], cfg: ModelConfig, shapes: Mapping
) -> dict:
  """Turns a state dict of the original into our parameters.

  The map is linear, so that gradients go through it too.

  Args:
    state: original key -> array.
    cfg: the network.
    shapes: our parameters, or their shapes, as a nested dict.

  Raises:
    KeyError: naming every key that is missing.
    ValueError: naming the keys that our network has no place for.
  """
  names = lumina_names(cfg)
  keys = {
    name.key.format(i=i)
    for name in names.values()
    for i in range(cfg.depth if "{i}" in name.key else 1)
  }
  if missing := sorted(keys - set(state)):
    raise KeyError(f"missing from the checkpoint: {', '.join(missing)}")
  if unknown := sorted(set(state) - keys):
    raise ValueError(f"no place for these of the checkpoint: {unknown}")
  params: dict = {}
  for path, name in names.items():
    *parents, leaf = path
    shape, node = shapes, params
    for parent in parents:
      shape, node = shape[parent], node.setdefault(parent, {})
    shape = shape[leaf].shape
    if "{i}" in name.key:
      layers = (state[name.key.format(i=i)] for i in range(cfg.depth))
      arrays = [_ours(a, name.kind, shape[1:], cfg) for a in layers]
      node[leaf] = np.stack(arrays)
    else:
      node[leaf] = _ours(state[name.key], name.kind, shape, cfg)
  return params


def _ours(
  x: np.ndarray, kind: str, shape: tuple[int, ...], cfg: ModelConfig
) -> np.ndarray:
  channels = cfg.channels
  match kind:
    case "matrix":
      x = x.T
    case "patch_in":
      x = einops.rearrange(x, "d (c p) -> (p c) d", c=channels)
    case "patch_out":
      x = einops.rearrange(x, "(p s c) d -> s (p c) d", s=2, c=channels)[0]
      x = x.T
    case "patch_out_bias":
      x = einops.rearrange(x, "(p s c) -> s (p c)", s=2, c=channels)[0]
  return np.ascontiguousarray(x).reshape(shape)
