"""Which network weights are of, and every way in which they are of none."""

import dataclasses
import re
import time

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.families import (
  FAMILIES,
  NEXT,
  UNTOLD,
  assert_same,
  random_params,
  shapes_once,  # noqa: F401
  small,
  state_dict,
)

from lumina_jax.backbone import PUBLISHED
from lumina_jax.backbone.config import NEXT_T2I
from lumina_jax.interop import load_pytorch, pth
from lumina_jax.interop.constructors import CONSTRUCTORS
from lumina_jax.interop.infer import lumina_config
from lumina_jax.interop.layout import Layout
from lumina_jax.interop.lumina import lumina_names

AUDIO = FAMILIES["audio"]


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
    name: state_dict(cfg, random_params(cfg)) for name, cfg in FAMILIES.items()
  }


@pytest.mark.parametrize(
  "name",
  [
    "flag_dit_t2i_5b",
    "next_dit_t2i_2b_gqa_sd3",
    "flag_dit_imagenet_7b",
    "next_dit_imagenet_2b",
    "next_dit_moe_time_600m_gqa",
    "next_dit_moe_token_600m",
    "next_dit_moe_both_600m",
  ],
)
def test_published_networks_are_known_by_their_constructor(name):
  cfg = PUBLISHED[name]
  shapes = Layout(cfg, lumina_names(cfg)).shapes()
  args = {"model": CONSTRUCTORS[name], "qk_norm": True, "image_size": 256}
  assert lumina_config(shapes, args) == (cfg, True)


def test_every_published_image_network_has_a_constructor():
  audio = {"flag_dit_audio"}
  assert CONSTRUCTORS.keys() == PUBLISHED.keys() - audio


@pytest.mark.parametrize(
  "name", [n for n in FAMILIES if "n_heads" in UNTOLD[n]]
)
def test_a_lone_file_without_text_asks_for_the_heads(states, save, name):
  args = {k: v for k, v in UNTOLD[name].items() if k != "n_heads"}
  with pytest.raises(ValueError, match="cannot be read off") as error:
    load_pytorch(save(states[name]), args)
  assert "name it: model_args={'n_heads': 32} (--model_arg=n_heads=32)" in str(
    error.value
  )


@pytest.mark.parametrize("name", ["moe_time", "moe_token"])
def test_a_lone_file_asks_what_chooses_among_its_experts(states, save, name):
  with pytest.raises(ValueError, match="time or token: with both 32 wide") as e:
    load_pytorch(save(states[name]), {"n_heads": 4})
  assert "'Next-DiT-MoE/time'" in str(e.value)
  assert "'Next-DiT-MoE/space'" in str(e.value)


def test_a_lone_file_needs_its_patch_size_if_that_is_not_two(save):
  cfg = small(**NEXT_T2I | dict(text_width=24), patch=(3, 3), channels=1)
  params = random_params(cfg)
  path = save(state_dict(cfg, params))
  with pytest.raises(ValueError, match="name patch_size in model_args"):
    load_pytorch(path)
  found, back = load_pytorch(path, {"patch_size": 3})
  assert found == cfg
  assert_same(back, params)


def test_channels_tell_patches_that_only_look_like_larger_ones(save):
  # 4 x 4 x 4 values are 2 x 2 x 16 as well: in_channels settles it.
  cfg = small(**NEXT_T2I | dict(text_width=24), patch=(4, 4))
  path = save(state_dict(cfg, random_params(cfg)))
  with pytest.raises(ValueError, match="in_channels = 4, the weights 16"):
    load_pytorch(path, {"in_channels": 4})
  assert load_pytorch(path, {"patch_size": 4, "in_channels": 4})[0] == cfg


@pytest.mark.parametrize(
  ("name", "args", "named"),
  [
    ("next_text", {"dim": 64}, "dim = 64, the weights 32"),
    ("next_text", {"n_layers": 3}, "n_layers = 3, the weights 2"),
    ("next_text", {"n_kv_heads": 4}, "n_kv_heads = 4, the weights 2"),
    ("next_text", {"in_channels": 16}, "in_channels = 16, the weights 4"),
    ("next_text", {"cap_feat_dim": 9}, "cap_feat_dim = 9, the weights 24"),
    ("next_text", {"qk_norm": False}, "qk_norm = False, the weights True"),
    ("next_text", {"n_heads": 8}, "n_heads = 8, the weights 4"),
    ("next_imagenet", {"n_heads": 5}, "do not divide into n_heads = 5"),
    ("next_text", {"multiple_of": 80}, "multiple_of = 80 make no feed-forward"),
    ("next_text", {"ffn_dim_multiplier": 2.0}, "ffn_dim_multiplier = 2.0"),
    ("next_imagenet", {"num_classes": 9}, "num_classes = 9, the weights 10"),
    ("audio", {"hidden_size": 16}, "hidden_size = 16, the weights 32"),
    ("audio", {"context_dim": 4, "depth": 1}, "2; context_dim = 4, the weigh"),
  ],
)
def test_model_args_that_contradict_the_weights(
  states, save, name, args, named
):
  with pytest.raises(ValueError, match=re.escape(named)):
    load_pytorch(save(states[name]), UNTOLD[name] | args)


@pytest.mark.parametrize(
  ("args", "named"),
  [
    ({"nheads": 2}, "model_args: 'nheads'; did you mean 'n_heads'?"),
    ({"n_head": 2}, "'n_head'; did you mean 'n_heads'?"),
    ({"norm-eps": 1e-6}, "'norm-eps'; did you mean 'norm_eps'?"),
    ({"pathc_size": 4}, "'pathc_size'; did you mean 'patch_size'?"),
    ({"num_expert": 3}, "'num_expert'; did you mean 'num_experts'?"),
  ],
)
def test_a_name_that_is_nearly_right(states, save, args, named):
  path = save(states["next_text"])
  with pytest.raises(ValueError, match=re.escape(named)) as error:
    load_pytorch(path, args)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["next_text", "next_imagenet", "moe_time"])
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
def test_values_of_no_use(states, save, name, args):
  path = save(states[name])
  with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
    load_pytorch(path, UNTOLD[name] | args)


def test_flags_of_the_original_that_do_not_concern_a_network(states, save):
  # train.py writes all of its flags, num_classes for text as well.
  args = {"num_classes": 1000, "lr": 1e-4, "n_kv_heads": None, "vae": "sdxl"}
  assert load_pytorch(save(states["next_text"]), args)[0] == NEXT


def test_next_dit_from_before_its_change_is_explained(states, save):
  state = dict(states["next_text"])
  for i in range(NEXT.depth):
    for kind in ("weight", "bias"):
      key = f"layers.{i}.adaLN_modulation.1.{kind}"
      state[key] = np.concatenate([state[key], state[key][:64]])
  with pytest.raises(ValueError, match="before 28 May 2024"):
    load_pytorch(save(state))


def test_steering_of_neither_family(states, save):
  state = dict(states["next_text"])
  key = "layers.0.adaLN_modulation.1.weight"
  state[key] = state[key][:-1]
  with pytest.raises(ValueError, match="127 rows for 2 sublayers of width 32"):
    load_pytorch(save(state))


def test_all_that_is_wrong_is_listed_at_once(states, save):
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
  with pytest.raises(ValueError, match="not those of this network") as error:
    load_pytorch(path)
  assert str(error.value) == "\n".join(
    [
      f"{path}: the tensors are not those of this network",
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


def test_runs_of_numbers_share_a_line(states, save):
  state = dict(states["next_text"])
  for i in (4, 0, 2, 1, 7, 8):
    state[f"layers.{i}.surplus"] = np.zeros(3, np.float32)
  with pytest.raises(ValueError, match=r"layers\.\{0-2,4,7-8\}\.surplus: \(3,"):
    load_pytorch(save(state))


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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_what_wrappers_put_before_every_name_is_dropped(
  states, save, tmp_path, prefix
):
  state = {f"{prefix}{key}": x for key, x in states["next_text"].items()}
  with pth.Writer(tmp_path / "lone.pth") as file:
    for key, x in state.items():
      file.add(key, x)
  for path in (save(state), tmp_path / "lone.pth"):
    found, back = load_pytorch(path)
    assert found == NEXT
    assert_same(back, random_params(NEXT))
  # A name without it says that the prefix is no wrapper's.
  state["pad_token"] = state.pop(f"{prefix}pad_token")
  with pytest.raises(ValueError, match="no state dict of a Lumina network"):
    load_pytorch(save(state))


@pytest.mark.parametrize(
  ("keep", "message"),
  [
    ("nothing", "looked for x_embedder.weight"),
    ("x_embedder", "layers.0.attention_norm.weight is missing"),
    (r"(?!t_embedder)", "t_embedder.mlp.0.weight is missing"),
    (r"(?!layers\.0)", "layers.0.attention_norm.weight is missing"),
    (r"(?!layers\.\d+\.feed)", "layers.0.feed_forward.w1.weight is missing"),
    (r"(?!final_layer\.lin)", "final_layer.linear.weight is missing"),
  ],
)
def test_too_little_to_tell_a_network(states, save, keep, message):
  state = {k: v for k, v in states["next_text"].items() if re.match(keep, k)}
  state["foreign"] = np.zeros(1, np.float32)
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    load_pytorch(save(state))
  assert "no state dict of a Lumina network" in str(error.value)


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
  state["final_layer.linear.weight"] = np.zeros((24, 32), np.float32)
  with pytest.raises(ValueError, match=r"24 rows; .* need 16, or twice"):
    load_pytorch(save(state))


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_the_whole_audio_model_holds_the_network(tmp_path, states, suffix):
  path = tmp_path / f"epoch=3{suffix}"
  with pth.Writer(path) as file:
    file.add("scale_factor", np.float32(0.7))
    file.add("first_stage_model.encoder.weight", np.ones(3, np.float32))
    for key, x in states["audio"].items():
      file.add(f"model.diffusion_model.{key}", x)
    file.add("cond_stage_model.x_embedder.weight", np.ones(3, np.float32))
  # num_heads is the gates'; whole steps of time are this model's own.
  found, back = load_pytorch(path)
  assert found == AUDIO
  assert_same(back, random_params(AUDIO))


def test_a_lone_audio_network_is_warned_about(states, save, caplog):
  found, _ = load_pytorch(save(states["audio"]))
  assert found == dataclasses.replace(AUDIO, time_scale=1.0)
  assert "model_args={'time_scale': 1000}" in caplog.text
