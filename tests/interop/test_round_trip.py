"""Every family through every format and back, bit for bit."""

import dataclasses
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
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

from lumina_jax.backbone.config import FLAG_T2I, NEXT_IMAGENET, NEXT_T2I
from lumina_jax.interop import load_pytorch, load_weights, pth, save_pytorch
from lumina_jax.interop.convert import convert
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.pytorch import open_pytorch
from lumina_jax.interop.weights import read_all

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
ORIGINALS = sorted(p.parent.name for p in GOLDEN.glob("*/weights.safetensors"))
# Destination and layout, one for each format.
FORMATS = {
  "original": "lumina",
  "lone.safetensors": "lumina",
  "lone.pth": "lumina",
  "for_diffusers": "diffusers",
  "ours": "lumina_jax",
}
# Values that weights do not show.
HIDDEN = dict(
  ffn_multiple=16,
  ffn_factor=1.3,
  norm_eps=1e-6,
  rope_linear=2.0,
  rope_ntk=3.0,
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
  cfg = FAMILIES[request.param]
  return request.param, cfg, random_params(cfg)


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
  """Each family as a folder of the original code."""
  name, cfg, params = family
  folder = tmp_path_factory.mktemp("lumina") / name
  save_pytorch(params, cfg, folder, medium=MEDIUM[name])
  return folder


def cast(params, dtype):
  return jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)


def test_folder_of_the_original(family, folder):
  name, cfg, params = family
  found, back = load_pytorch(folder)
  assert found == cfg
  assert_same(back, params)
  assert open_pytorch(folder).medium == MEDIUM[name]


def test_a_lone_file_with_the_arguments_it_needs(family, folder, tmp_path):
  name, cfg, params = family
  path = tmp_path / "lone.safetensors"
  # As others write it, without metadata.
  save_file(load_file(folder / "consolidated.00-of-01.safetensors"), path)
  found, back = load_pytorch(path, NEEDED_ARGS[name])
  assert found == cfg
  assert_same(back, params)


def test_a_lone_file_of_ours_needs_no_arguments(family, folder, tmp_path):
  _, cfg, params = family
  path = tmp_path / "copy.safetensors"
  path.write_bytes((folder / "consolidated.00-of-01.safetensors").read_bytes())
  found, back = load_pytorch(path)
  assert found == cfg
  assert_same(back, params)
  with safe_open(path, "np") as file:
    metadata = file.metadata()
  assert metadata["format"] == "pt"  # transformers and diffusers require it.
  args = pth.read_namespace(folder / "model_args.pth")
  assert json.loads(metadata["model_args.pth"]) == args


@pytest.mark.parametrize(
  ("name", "target"),
  [
    ("audio", "ours"),
    ("audio", "lone.pth"),
    ("moe_both", "pth_folder"),
    ("moe_both", "lone.pth"),
  ],
)
def test_other_formats_hold_any_family(tmp_path, name, target):
  cfg, params = FAMILIES[name], random_params(FAMILIES[name])
  save_pytorch(params, cfg, tmp_path / "a", medium=MEDIUM[name])
  layout = "lumina_jax" if target == "ours" else "lumina"
  convert(tmp_path / "a", tmp_path / target, layout, suffix=".pth")
  args = NEEDED_ARGS[name] if target == "lone.pth" else None
  weights = open_weights(tmp_path / target, model_args=args)
  assert dataclasses.replace(weights.cfg, dtype="float32") == cfg
  assert weights.medium == MEDIUM[name]
  assert_same(read_all(weights), params)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_bfloat16(tmp_path, name):
  params = random_params(NEXT)
  save_pytorch(params, NEXT, tmp_path / "a.safetensors")
  convert(
    tmp_path / "a.safetensors", tmp_path / name, FORMATS[name], dtype="bfloat16"
  )
  weights = open_weights(str(tmp_path / name))
  stored = {x.dtype for x in jax.tree.leaves(read_all(weights))}
  assert stored == {np.dtype(ml_dtypes.bfloat16)}
  found, back = load_weights(tmp_path / name)
  assert dataclasses.replace(found, dtype="float32") == NEXT
  assert_same(back, cast(params, ml_dtypes.bfloat16))
  with pytest.raises(FileNotFoundError, match="does not say whether they are"):
    load_weights(tmp_path / name, ema=True)


def test_float16(tmp_path):
  params, source = random_params(NEXT), tmp_path / "a.safetensors"
  save_pytorch(params, NEXT, source)
  convert(source, tmp_path / "half", "lumina", dtype="float16")
  assert_same(load_weights(tmp_path / "half")[1], cast(params, np.float16))
  kernel = params["blocks"]["feed_forward"]["up"]["kernel"].copy()
  kernel[1, 2, 3] = 7e4
  params["blocks"]["feed_forward"]["up"] = {"kernel": kernel}
  save_pytorch(params, NEXT, source, overwrite=True)
  before = sorted(tmp_path.iterdir())
  for layout in ("lumina", "diffusers", "lumina_jax"):
    with pytest.raises(
      ValueError, match="blocks/feed_forward/up/kernel holds values that floa"
    ):
      convert(source, tmp_path / "out", layout, dtype="float16")
    assert sorted(tmp_path.iterdir()) == before


def test_layers_may_have_different_dtypes(tmp_path):
  params, source = random_params(NEXT), tmp_path / "a.safetensors"
  state = state_dict(NEXT, params)
  for key in state:
    if key.startswith("layers.0."):
      state[key] = state[key].astype(np.float16)
  save_file(state, source)
  expected = params | {"blocks": jax.tree.map(np.copy, params["blocks"])}
  for x in jax.tree.leaves(expected["blocks"]):
    x[0] = x[0].astype(np.float16)
  convert(source, tmp_path / "b.pth", "lumina")
  for path in (source, tmp_path / "b.pth"):
    assert_same(load_pytorch(path)[1], expected)


@pytest.mark.parametrize(
  ("cfg", "name"),
  [
    (
      small(
        **NEXT_T2I | dict(text_width=24), patch=(4, 4), channels=3, **HIDDEN
      ),
      "out",
    ),
    (
      small(**FLAG_T2I | dict(text_width=24), qk_norm=False, **HIDDEN),
      "out.safetensors",
    ),
    (
      small(
        **NEXT_IMAGENET | dict(num_labels=3),
        routing=("token",),
        experts=3,
        active_experts=1,
        **HIDDEN,
      ),
      "out",
    ),
  ],
  ids=["next", "flag", "moe"],
)
def test_files_store_what_weights_do_not_show(tmp_path, cfg, name):
  params = random_params(cfg)
  save_pytorch(params, cfg, tmp_path / name)
  found, back = load_pytorch(tmp_path / name)
  assert found == cfg
  assert_same(back, params)


def test_a_diffusers_folder_stores_what_weights_do_not_show(tmp_path):
  hidden = {key: HIDDEN[key] for key in ("ffn_multiple", "ffn_factor")}
  cfg = dataclasses.replace(NEXT, patch=(4, 4), norm_eps=1e-6, **hidden)
  params = random_params(cfg)
  save_pytorch(params, cfg, tmp_path / "out", "diffusers")
  found, back = load_pytorch(tmp_path / "out")
  assert found == cfg
  assert_same(back, params)


def test_the_way_a_network_computes_is_not_stored(tmp_path):
  cfg = dataclasses.replace(NEXT, dtype="bfloat16", remat="none", unroll=2)
  save_pytorch(random_params(cfg), cfg, tmp_path / "out")
  assert load_pytorch(tmp_path / "out")[0] == NEXT


def test_model_args_override_those_in_a_file(tmp_path):
  path = tmp_path / "lone.safetensors"
  save_pytorch(random_params(NEXT), NEXT, path)
  assert load_pytorch(path, {"norm_eps": 1e-3})[0] == dataclasses.replace(
    NEXT, norm_eps=1e-3
  )
  with pytest.raises(ValueError, match="n_heads = 8, the weights 4"):
    load_pytorch(path, {"n_heads": 8})


def test_other_model_args_are_kept(tmp_path):
  args = {"lm": "some/model", "vae": "mse", "image_size": 512, "n_layers": 7}
  save_pytorch(random_params(NEXT), NEXT, tmp_path / "a", model_args=args)
  found = convert(tmp_path / "a", tmp_path / "b", "lumina").args
  assert {key: found[key] for key in args} == args | {"n_layers": 2}


@pytest.mark.parametrize("name", ORIGINALS)
def test_weights_of_the_original_and_back(tmp_path, name):
  source = GOLDEN / name
  args = json.loads((source / "config.json").read_text())["kwargs"]
  weights = open_pytorch(source / "weights.safetensors", args)
  cfg, medium = weights.cfg, weights.medium
  assert medium == ("audio" if "audio" in name else "image")
  save_pytorch(
    read_all(weights), cfg, tmp_path / "back.safetensors", medium=medium
  )
  theirs = load_file(source / "weights.safetensors")
  back = load_file(tmp_path / "back.safetensors")
  assert back.keys() == theirs.keys()
  for key, x in theirs.items():
    if key.startswith("final_layer.linear.") and medium == "image":
      # (p, p, 2C): the second half of the channels was the sigma.
      x = x.reshape(-1, 2 * cfg.channels, *x.shape[1:]).copy()
      x[:, cfg.channels :] = 0
      x = x.reshape(theirs[key].shape)
    np.testing.assert_array_equal(back[key], x, err_msg=key, strict=True)


@pytest.mark.parametrize(
  ("name", "inputs"), [("moe_time", "cond_width"), ("moe_token", "width")]
)
def test_experts_have_the_numbers_of_the_original(name, inputs):
  cfg = FAMILIES[name]
  state = state_dict(cfg, random_params(cfg))
  found = {k: x.shape for k, x in state.items() if "feed_forward" in k}
  wide, narrow = (cfg.ffn_width, cfg.width), (cfg.width, cfg.ffn_width)
  expected = {}
  for i in range(cfg.depth):
    prefix = f"layers.{i}.feed_forward"
    expected[f"{prefix}.gate.weight"] = (cfg.experts, getattr(cfg, inputs))
    for e in range(cfg.experts):
      for w, shape in (("w1", wide), ("w2", narrow), ("w3", wide)):
        expected[f"{prefix}.experts.{e}.{w}.weight"] = shape
  assert found == expected
