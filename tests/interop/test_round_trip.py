"""There and back: every family through every format, bit for bit."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
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

from lumina_jax.backbone import ModelConfig
from lumina_jax.backbone.config import FLAG_T2I, NEXT_IMAGENET, NEXT_T2I
from lumina_jax.convert import convert
from lumina_jax.interop import (
  load_pytorch,
  load_weights,
  ours,
  pth,
  save_pytorch,
)
from lumina_jax.interop.infer import ffn_fields
from lumina_jax.interop.target import write
from lumina_jax.interop.weights import gather

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
ORIGINALS = sorted(p.parent.name for p in GOLDEN.glob("*/weights.safetensors"))
CASTS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Where a network differs in what no weight tells.
UNSEEN = dict(
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
def lumina(family, tmp_path_factory):
  """Each family as a folder of the original code."""
  name, cfg, params = family
  folder = tmp_path_factory.mktemp("lumina") / name
  save_pytorch(params, cfg, folder)
  return folder


def test_folder_of_the_original(family, lumina):
  _, cfg, params = family
  found, back = load_pytorch(lumina)
  assert found == cfg
  assert_same(back, params)


def test_folder_with_pth(family, lumina, tmp_path):
  _, cfg, params = family
  convert(lumina, tmp_path / "pth", "lumina", suffix=".pth")
  assert not list((tmp_path / "pth").glob("*.safetensors"))
  found, back = load_pytorch(tmp_path / "pth")
  assert found == cfg
  assert_same(back, params)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_lone_file_with_what_it_does_not_tell(
  family, lumina, tmp_path, suffix
):
  name, cfg, params = family
  path = tmp_path / f"lone{suffix}"
  convert(lumina, path, "lumina")
  if suffix == ".safetensors":  # As others write it, without metadata.
    save_file(load_file(path), path)
  found, back = load_pytorch(path, UNTOLD[name])
  assert found == cfg
  assert_same(back, params)


def test_a_lone_file_of_ours_tells_all(family, lumina, tmp_path):
  _, cfg, params = family
  convert(lumina, tmp_path / "lone.safetensors", "lumina")
  # Also out of its folder.
  (tmp_path / "copy.safetensors").write_bytes(
    (lumina / "consolidated.00-of-01.safetensors").read_bytes()
  )
  for name in ("lone", "copy"):
    found, back = load_pytorch(tmp_path / f"{name}.safetensors")
    assert found == cfg
    assert_same(back, params)
  with safe_open(tmp_path / "lone.safetensors", "np") as file:
    said = file.metadata()
  assert said["format"] == "pt"  # transformers and diffusers insist on it.
  args = pth.read_namespace(lumina / "model_args.pth")
  assert json.loads(said["model_args.pth"]) == args


def test_model_args_stand_above_what_a_lone_file_says(tmp_path):
  path = tmp_path / "lone.safetensors"
  save_pytorch(random_params(NEXT), NEXT, path)
  assert load_pytorch(path, {"norm_eps": 1e-3})[0] == dataclasses.replace(
    NEXT, norm_eps=1e-3
  )
  with pytest.raises(ValueError, match="n_heads = 8, the weights 4"):
    load_pytorch(path, {"n_heads": 8})


@pytest.mark.parametrize(
  ("name", "layout"),
  [
    ("theirs", "lumina"),
    ("lone.safetensors", "lumina"),
    ("lone.pth", "lumina"),
    ("for_diffusers", "diffusers"),
    ("ours", "lumina_jax"),
  ],
)
def test_load_weights_takes_any_format(tmp_path, name, layout):
  params = random_params(NEXT)
  save_pytorch(params, NEXT, tmp_path / "a.safetensors")
  convert(tmp_path / "a.safetensors", tmp_path / name, layout, dtype="bfloat16")
  for path in (tmp_path / name, str(tmp_path / name)):
    found, back = load_weights(path)
    assert dataclasses.replace(found, dtype="float32") == NEXT
    assert_same(back, cast(params, ml_dtypes.bfloat16))
  with pytest.raises(FileNotFoundError, match="does not say which"):
    load_weights(tmp_path / name, ema=True)


@pytest.mark.parametrize("place", ["lumina", "diffusers", "lone.pth", "ours"])
def test_numbers_too_large_for_half_precision_are_named(tmp_path, place):
  params = random_params(NEXT)
  kernel = params["blocks"]["feed_forward"]["up"]["kernel"].copy()
  kernel[1, 2, 3] = 7e4
  params["blocks"]["feed_forward"]["up"] = {"kernel": kernel}
  source, out = tmp_path / "a.safetensors", tmp_path / place
  save_pytorch(params, NEXT, source)
  layout = {"diffusers": "diffusers", "ours": "lumina_jax"}.get(place, "lumina")
  with pytest.raises(
    ValueError, match="blocks/feed_forward/up/kernel holds numbers that float16"
  ):
    convert(source, out, layout, dtype="float16")
  assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
  convert(source, out, layout, dtype="bfloat16")
  assert_same(load_weights(out)[1], cast(params, ml_dtypes.bfloat16))


@pytest.mark.parametrize("place", ["lumina", "diffusers", "lone.pth", "ours"])
def test_the_type_of_one_layer_does_not_decide_for_another(tmp_path, place):
  params, source = random_params(NEXT), tmp_path / "a.safetensors"
  state = state_dict(NEXT, params)
  for key in state:
    if key.startswith("layers.0."):
      state[key] = state[key].astype(np.float16)
  save_file(state, source)
  expected = params | {"blocks": jax.tree.map(np.copy, params["blocks"])}
  for x in jax.tree.leaves(expected["blocks"]):
    x[0] = x[0].astype(np.float16)
  layout = {"diffusers": "diffusers", "ours": "lumina_jax"}.get(place, "lumina")
  convert(source, tmp_path / place, layout)
  assert_same(load_pytorch(source)[1], expected)
  assert_same(load_weights(tmp_path / place)[1], expected)


def test_our_own_folder_keeps_all_of_the_network(family, lumina, tmp_path):
  _, cfg, params = family
  convert(lumina, tmp_path / "ours", "lumina_jax")
  weights = ours.open_ours(tmp_path / "ours", None)
  assert dataclasses.replace(weights.cfg, dtype="float32") == cfg
  assert_same(gather(weights), params)


def test_diffusers_folder(tmp_path):
  params = random_params(NEXT)
  save_pytorch(params, NEXT, tmp_path / "out", layout="diffusers")
  found, back = load_pytorch(tmp_path / "out")
  assert found == NEXT
  assert_same(back, params)


@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("place", ["lumina", "diffusers", "a.safetensors"])
def test_half_precision_is_the_cast(tmp_path, dtype, place):
  params = random_params(NEXT)
  layout = "diffusers" if place == "diffusers" else "lumina"
  save_pytorch(params, NEXT, tmp_path / place, layout, dtype=dtype)
  _, back = load_pytorch(tmp_path / place)
  assert_same(back, cast(params, CASTS[dtype]))


def cast(params, dtype):
  return jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)


@pytest.mark.parametrize("dtype", CASTS)
def test_half_precision_in_pth_and_in_our_folder(tmp_path, dtype):
  params = random_params(NEXT)
  save_pytorch(params, NEXT, tmp_path / "a.safetensors")
  source = tmp_path / "a.safetensors"
  convert(source, tmp_path / "a.pth", "lumina", dtype=dtype)
  _, back = load_pytorch(tmp_path / "a.pth")
  assert_same(back, cast(params, CASTS[dtype]))
  convert(source, tmp_path / "ours", "lumina_jax", dtype=dtype)
  stored = gather(ours.open_ours(tmp_path / "ours", None))
  assert_same(stored, jax.tree.map(lambda x: x.astype(CASTS[dtype]), params))


@pytest.mark.parametrize(
  "cfg",
  [
    small(**NEXT_T2I | dict(text_width=24), patch=(4, 4), channels=3, **UNSEEN),
    small(**FLAG_T2I | dict(text_width=24), qk_norm=False, **UNSEEN),
    small(
      **NEXT_IMAGENET | dict(num_labels=3),
      routing=("token",),
      experts=3,
      active_experts=1,
      **UNSEEN,
    ),
  ],
  ids=["next", "flag", "moe"],
)
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_files_tell_what_their_weights_do_not(tmp_path, cfg, name):
  params = random_params(cfg)
  save_pytorch(params, cfg, tmp_path / name)
  found, back = load_pytorch(tmp_path / name)
  assert found == cfg
  assert_same(back, params)


def test_a_diffusers_folder_tells_what_its_weights_do_not(tmp_path):
  told = {key: UNSEEN[key] for key in ("ffn_multiple", "ffn_factor")}
  cfg = dataclasses.replace(NEXT, patch=(4, 4), norm_eps=1e-6, **told)
  save_pytorch(random_params(cfg), cfg, tmp_path / "out", "diffusers")
  assert load_pytorch(tmp_path / "out")[0] == cfg


def test_how_a_network_computes_is_not_part_of_its_weights(tmp_path):
  cfg = dataclasses.replace(NEXT, dtype="bfloat16", remat=False, unroll=2)
  save_pytorch(random_params(cfg), cfg, tmp_path / "out")
  assert load_pytorch(tmp_path / "out")[0] == NEXT


def test_what_a_folder_says_beside_the_network_is_kept(tmp_path):
  args = {"lm": "some/reader", "vae": "mse", "image_size": 512, "n_layers": 7}
  save_pytorch(random_params(NEXT), NEXT, tmp_path / "a", model_args=args)
  found = convert(tmp_path / "a", tmp_path / "b", "lumina").args
  assert {key: found[key] for key in args} == args | {"n_layers": 2}


@pytest.mark.parametrize("name", ORIGINALS)
def test_original_to_ours_to_original(tmp_path, name):
  source = GOLDEN / name
  kwargs = json.loads((source / "config.json").read_text())["kwargs"]
  cfg, params = load_pytorch(source / "weights.safetensors", kwargs)
  save_pytorch(params, cfg, tmp_path / "back.safetensors")
  theirs = load_file(source / "weights.safetensors")
  back = load_file(tmp_path / "back.safetensors")
  assert back.keys() == theirs.keys()
  for key, x in theirs.items():
    if key.startswith("final_layer.linear.") and len(cfg.patch) > 1:
      # (p, p, 2C): the second half of channels was the sigma.
      x = x.reshape(-1, 2 * cfg.channels, *x.shape[1:]).copy()
      x[:, cfg.channels :] = 0
      x = x.reshape(theirs[key].shape)
    np.testing.assert_array_equal(back[key], x, err_msg=key, strict=True)


def test_experts_are_numbered_as_in_the_original():
  for name, inputs in (("moe_time", "cond_width"), ("moe_token", "width")):
    cfg = FAMILIES[name]
    state = state_dict(cfg, random_params(cfg))
    found = {k: x.shape for k, x in state.items() if "feed_forward" in k}
    wide, narrow = (cfg.ffn_width, cfg.width), (cfg.width, cfg.ffn_width)
    expected = {}
    for i in range(cfg.depth):
      at = f"layers.{i}.feed_forward"
      expected[f"{at}.gate.weight"] = (cfg.experts, getattr(cfg, inputs))
      for e in range(cfg.experts):
        for w, shape in (("w1", wide), ("w2", narrow), ("w3", wide)):
          expected[f"{at}.experts.{e}.{w}.weight"] = shape
    assert found == expected


def test_every_width_of_a_feed_forward_can_be_said():
  rng = np.random.default_rng(0)
  for width, hidden in rng.integers(1, 5000, (500, 2)).tolist():
    fields = ffn_fields(2 * width, hidden, {})
    cfg = small(**NEXT_T2I, width=2 * width, heads=1, kv_heads=1, **fields)
    assert cfg.ffn_width == hidden, (width, hidden)


class Shapeless(NamedTuple):
  """Weights that are refused before any of them is asked for."""

  cfg: ModelConfig
  args: Mapping[str, object] = MappingProxyType({})


@pytest.mark.parametrize(
  ("layout", "changes", "named"),
  [
    ("lumina", dict(text_query=True), "text_query = True"),
    ("lumina", dict(separators=True), "separators = True"),
    ("lumina", dict(cond_width=16), "cond_width = 16 (there 32)"),
    ("lumina", dict(tanh_gate=False), "tanh_gate = False"),
    ("lumina", dict(patch=(2, 4)), "patch = (2, 4)"),
    ("lumina", dict(num_labels=3), "num_labels = 3"),
    ("lumina", dict(time_scale=1000.0), "time_scale = 1000.0"),
    ("diffusers", dict(cond_width=16), "cond_width = 16"),
    ("lumina", dict(rope_theta=2e4), "rope_theta = 20000.0"),
    ("diffusers", dict(rope_theta=2e4), "rope_theta = 20000.0"),
    ("diffusers", dict(rope_ntk=2.0), "rope_ntk = 2.0"),
    ("diffusers", dict(patch=(2, 4)), "patch = (2, 4)"),
  ],
)
def test_a_network_that_a_layout_has_no_place_for(
  tmp_path, layout, changes, named
):
  cfg = dataclasses.replace(NEXT, **changes)
  with pytest.raises(ValueError, match=re.escape(named)):
    write(Shapeless(cfg), tmp_path / "out", layout)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "next_text"])
def test_diffusers_has_next_dit_for_text_alone(tmp_path, name):
  cfg: ModelConfig = FAMILIES[name]
  wrong = {
    "flag_text": ["raster = True", "shift = True", "separators = True"],
    "flag_imagenet": ["raster = True", "num_labels = 10"],
    "next_imagenet": ["pre_norm_scale = False", "num_labels = 10"],
    "audio": ["raster = True", "patch = (1,)", "time_scale = 1000.0"],
  }.get(name, [f"routing = {cfg.routing}"])
  with pytest.raises(ValueError, match="LuminaNextDiT2DModel") as error:
    write(Shapeless(cfg), tmp_path / "out", "diffusers")
  for field in wrong:
    assert field in str(error.value)
  assert "layout='lumina'" in str(error.value)
  assert not list(tmp_path.iterdir())
