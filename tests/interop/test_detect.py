"""Detects the network behind a state dict, or says what is missing or wrong."""

import dataclasses
import re
import time

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.families import (
  FAMILIES,
  MEDIUM,
  NEEDED_ARGS,
  NEXT,
  assert_same,
  random_params,
  shapes_once,  # noqa: F401
  small,
  state_dict,
)

from lumina_jax.backbone import PUBLISHED
from lumina_jax.backbone.config import NEXT_T2I
from lumina_jax.interop import load_pytorch
from lumina_jax.interop.detect import detect_network, ffn_fields
from lumina_jax.interop.layout import backbone_layout
from lumina_jax.interop.lumina import MEDIA, lumina_names
from lumina_jax.interop.model_args import CONSTRUCTORS


@pytest.fixture
def save(tmp_path):
  """Saves a state dict as a lone file."""

  def save(state):
    save_file(state, tmp_path / "lone.safetensors")
    return tmp_path / "lone.safetensors"

  return save


@pytest.fixture(scope="module")
def states():
  """The state dict of each family."""
  return {
    name: state_dict(cfg, random_params(cfg), MEDIUM[name])
    for name, cfg in FAMILIES.items()
  }


@pytest.mark.parametrize(
  "name",
  [
    "flag_dit_t2i_5b",
    "next_dit_t2i_2b_gqa_sd3",
    "next_dit_moe_token_600m",
    "flag_dit_audio",
  ],
)
def test_published_networks_are_detected(name):
  cfg, medium = PUBLISHED[name], "audio" if "audio" in name else "image"
  names, sigma = lumina_names(cfg, medium), MEDIA[medium].sigma
  layout = backbone_layout(cfg, names, sigma)
  args = {"qk_norm": cfg.qk_norm, "image_size": 256}
  if medium == "image":
    args["model"] = CONSTRUCTORS[name]
  else:
    args["time_scale"] = 1000
  found = detect_network(layout.shapes(), args)
  assert found == (cfg, medium, medium == "image")


def test_every_published_image_network_has_a_constructor():
  assert CONSTRUCTORS.keys() == PUBLISHED.keys() - {"flag_dit_audio"}


def test_every_feed_forward_width_has_fields():
  rng = np.random.default_rng(0)
  for width, hidden in rng.integers(1, 5000, (500, 2)).tolist():
    fields = ffn_fields(2 * width, hidden, {})
    cfg = small(**NEXT_T2I, width=2 * width, heads=1, kv_heads=1, **fields)
    assert cfg.ffn_width == hidden, (width, hidden)


SET_HEADS = (
  "the weights do not show the number of heads; set it: "
  "model_args={'n_heads': 32} (--model_arg=n_heads=32)"
)
SET_ROUTER = (
  "both are 32 wide; set it: model_args={'model': 'Next-DiT-MoE/time'}"
)


@pytest.mark.parametrize(
  ("name", "args", "message"),
  [
    ("flag_imagenet", {}, SET_HEADS),
    ("next_imagenet", {}, SET_HEADS),
    ("moe_both", {}, SET_HEADS),
    ("moe_time", {"n_heads": 4}, SET_ROUTER),
    ("moe_token", {"n_heads": 4}, SET_ROUTER),
  ],
)
def test_a_lone_file_asks_for_what_it_does_not_show(
  states, save, name, args, message
):
  with pytest.raises(ValueError, match=re.escape(message)):
    load_pytorch(save(states[name]), args)


def test_a_lone_file_needs_its_patch_size_unless_it_is_two(save):
  cfg = small(**NEXT_T2I | dict(text_width=24), patch=(3, 3), channels=1)
  params = random_params(cfg)
  path = save(state_dict(cfg, params))
  with pytest.raises(ValueError, match="set patch_size in model_args"):
    load_pytorch(path)
  found, back = load_pytorch(path, {"patch_size": 3})
  assert found == cfg
  assert_same(back, params)


def test_in_channels_reveals_a_larger_patch(save):
  # 4 x 4 x 4 values are 2 x 2 x 16 as well.
  cfg = small(**NEXT_T2I | dict(text_width=24), patch=(4, 4))
  path = save(state_dict(cfg, random_params(cfg)))
  with pytest.raises(ValueError, match="in_channels = 4, the weights 16"):
    load_pytorch(path, {"in_channels": 4})
  assert load_pytorch(path, {"patch_size": 4, "in_channels": 4})[0] == cfg


@pytest.mark.parametrize(
  ("name", "args", "message"),
  [
    ("next_text", {"dim": 64}, "dim = 64, the weights 32"),
    ("next_text", {"n_layers": 3}, "n_layers = 3, the weights 2"),
    ("next_text", {"n_kv_heads": 4}, "n_kv_heads = 4, the weights 2"),
    ("next_text", {"in_channels": 16}, "in_channels = 16, the weights 4"),
    ("next_text", {"cap_feat_dim": 9}, "cap_feat_dim = 9, the weights 24"),
    ("next_text", {"qk_norm": False}, "qk_norm = False, the weights True"),
    ("next_text", {"n_heads": 8}, "n_heads = 8, the weights 4"),
    ("next_imagenet", {"n_heads": 5}, "32 is not divisible by n_heads = 5"),
    ("next_text", {"multiple_of": 80}, "None and multiple_of = 80 make anoth"),
    ("next_text", {"ffn_dim_multiplier": 2.0}, "ffn_dim_multiplier = 2.0"),
    ("next_imagenet", {"num_classes": 9}, "num_classes = 9, the weights 10"),
    ("audio", {"hidden_size": 16}, "hidden_size = 16, the weights 32"),
    ("audio", {"context_dim": 4, "depth": 1}, "2; context_dim = 4, the weigh"),
    # Names that resemble a known one.
    ("next_text", {"nheads": 2}, "'nheads'; did you mean 'n_heads'?"),
    ("next_text", {"n_head": 2}, "'n_head'; did you mean 'n_heads'?"),
    ("next_text", {"norm-eps": 1}, "'norm-eps'; did you mean 'norm_eps'?"),
    ("next_text", {"pathc_size": 4}, "'pathc_size'; did you mean 'patch_size"),
    ("next_text", {"num_expert": 3}, "'num_expert'; did you mean 'num_experts"),
  ],
)
def test_model_args_that_are_wrong(states, save, name, args, message):
  path = save(states[name])
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    load_pytorch(path, NEEDED_ARGS[name] | args)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  "args",
  [
    {"n_heads": [4]},
    {"n_heads": {}},
    {"n_heads": "four"},
    {"n_heads": 0},
    {"n_heads": 1e999},
    {"patch_size": "2x2"},
    {"patch_size": [2, 2]},
    {"patch_size": 0},
    {"multiple_of": "many"},
    {"multiple_of": 0},
    {"ffn_dim_multiplier": "x"},
    {"ffn_dim_multiplier": 1e999},
    {"norm_eps": [1]},
    {"norm_eps": "tiny"},
    {"scale_factor": {}},
    {"time_scale": [1]},
  ],
  ids=str,
)
def test_model_args_of_a_wrong_type_or_size(states, save, args):
  for name in ("next_text", "next_imagenet", "moe_time"):
    path = save(states[name])
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
      load_pytorch(path, NEEDED_ARGS[name] | args)


def test_other_flags_of_the_original_are_ignored(states, save):
  # train.py stores all of its flags, for text networks num_classes too.
  args = {"num_classes": 1000, "lr": 1e-4, "n_kv_heads": None, "vae": "sdxl"}
  assert load_pytorch(save(states["next_text"]), args)[0] == NEXT


def change_adaln(state):
  """As Next-DiT was at first, with three vectors more."""
  for i in range(NEXT.depth):
    for kind in ("weight", "bias"):
      key = f"layers.{i}.adaLN_modulation.1.{kind}"
      state[key] = np.concatenate([state[key], state[key][:64]])


def cut_adaln(state):
  key = "layers.0.adaLN_modulation.1.weight"
  state[key] = state[key][:-1]


def add_blocks(state):
  for i in (4, 0, 2, 1, 7, 8):
    state[f"layers.{i}.surplus"] = np.zeros(3, np.float32)


def spoil_last_layer(state):
  state["final_layer.linear.weight"] = np.zeros((24, 32), np.float32)


def drop_pad_token(state):
  del state["pad_token"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (change_adaln, "before 28 May 2024"),
    (cut_adaln, "127 rows for 2 sublayers of width 32"),
    (add_blocks, "\n  layers.{0-2,4,7-8}.surplus: (3,)"),
    (
      spoil_last_layer,
      "24 rows; patches of (2, 2) with 4 channels need 16, or",
    ),
    (drop_pad_token, "no such image network: pad_token = False (must be True)"),
  ],
)
def test_tensors_of_another_network(states, save, change, message):
  state = dict(states["next_text"])
  change(state)
  with pytest.raises(ValueError, match=re.escape(message)):
    load_pytorch(save(state))


@pytest.mark.parametrize(
  ("keep", "message"),
  [
    ("nothing", "expected x_embedder.weight (image) or proj_in.weight (audio)"),
    ("x_embedder", "layers.0.attention_norm.weight is missing"),
    (r"(?!t_embedder)", "t_embedder.mlp.0.weight is missing"),
    (r"(?!layers\.0)", "layers.0.attention_norm.weight is missing"),
    (r"(?!layers\.\d+\.feed)", "layers.0.feed_forward.w1.weight is missing"),
    (r"(?!final_layer\.lin)", "final_layer.linear.weight is missing"),
  ],
)
def test_state_dicts_with_too_few_tensors(states, save, keep, message):
  state = {k: v for k, v in states["next_text"].items() if re.match(keep, k)}
  state["foreign"] = np.zeros(1, np.float32)
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    load_pytorch(save(state))
  assert "not the state dict of a Lumina network" in str(error.value)


def test_all_differences_are_listed(states, save):
  state = dict(states["next_text"])
  for i in range(2):
    del state[f"layers.{i}.attention.wq.weight"]
  del state["layers.1.ffn_norm1.weight"]
  state["layers.1.surplus"] = np.zeros((2, 3), np.float32)
  state["head.weight"] = np.zeros(7, np.float32)
  state["pad_token"] = np.zeros(31, np.float32)
  for i in range(2):
    state[f"layers.{i}.attention.wv.weight"] = np.zeros((16, 30), np.float32)
  path = save(state)
  with pytest.raises(ValueError) as error:
    load_pytorch(path)
  assert str(error.value) == "\n".join(
    [
      f"{path}: the tensors do not fit this network",
      "3 missing:",
      "  layers.{0-1}.attention.wq.weight: (32, 32)",
      "  layers.{1}.ffn_norm1.weight: (32,)",
      "2 unexpected:",
      "  head.weight: (7,)",
      "  layers.{1}.surplus: (2, 3)",
      "3 of another shape:",
      "  pad_token: expected (32,), found (31,)",
      "  layers.{0-1}.attention.wv.weight: expected (16, 32), found (16, 30)",
    ]
  )


@pytest.mark.parametrize("number", [3 * 10**6, 3 * 10**15])
def test_a_stray_block_is_unexpected_and_costs_no_time(states, save, number):
  state = dict(states["next_text"])
  state[f"layers.{number}.surplus"] = np.zeros(3, np.float32)
  start = time.monotonic()
  with pytest.raises(ValueError, match=r"\n1 unexpected:\n") as error:
    load_pytorch(save(state))
  assert time.monotonic() - start < 5
  assert f"\n  layers.{{{number}}}.surplus: (3,)" in str(error.value)
  assert len(str(error.value)) < 5000


def test_a_last_layer_without_sigma(states, save):
  state = dict(states["next_text"])
  for kind in ("weight", "bias"):
    key = f"final_layer.linear.{kind}"
    # (p, p, 2C) -> (p, p, C).
    x = state[key].reshape(4, 2, 4, -1)[:, 0]
    state[key] = np.ascontiguousarray(x.reshape(16, *state[key].shape[1:]))
  found, back = load_pytorch(save(state))
  assert found == NEXT
  assert_same(back, random_params(NEXT))


def test_a_lone_audio_network_warns_about_its_time_scale(states, save, caplog):
  found, _ = load_pytorch(save(states["audio"]))
  assert found == dataclasses.replace(FAMILIES["audio"], time_scale=1.0)
  assert "model_args={'time_scale': 1000}" in caplog.text
