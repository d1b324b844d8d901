"""diffusers folders: sharded, loaded, and refused if broken."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.families import (
  NEXT,
  assert_same,
  random_params,
  shapes_once,  # noqa: F401
)

from lumina_jax.interop import load_pytorch, save_pytorch
from lumina_jax.interop.pytorch_writer import write_diffusers
from lumina_jax.interop.weights import in_memory

STEM = "diffusion_pytorch_model"
SHARD_BYTES = 20_000


@pytest.fixture(scope="module")
def params():
  return random_params(NEXT)


@pytest.fixture
def sharded(tmp_path, params):
  """A folder with files of at most 20 kB."""
  weights, kind = in_memory(NEXT, params, "image"), np.dtype(np.float32)
  folder = tmp_path / "sharded"
  write_diffusers(weights, folder, kind, False, shard_bytes=SHARD_BYTES)
  return folder


@pytest.fixture
def whole(tmp_path, params):
  save_pytorch(params, NEXT, tmp_path / "whole", "diffusers")
  return tmp_path / "whole"


def change(path, **values) -> None:
  """Changes values of a JSON file; None removes one."""
  changed = json.loads(path.read_text()) | values
  path.write_text(
    json.dumps({k: v for k, v in changed.items() if v is not None})
  )


def test_several_files_and_their_index(sharded, whole, params):
  assert_same(load_pytorch(sharded)[1], params)
  index = json.loads((sharded / f"{STEM}.safetensors.index.json").read_text())
  files = sorted(sharded.glob("*.safetensors"))
  assert len(files) > 3
  of = f"-of-{len(files):05d}.safetensors"
  assert all(path.name.endswith(of) for path in files)
  expected, total = load_file(whole / f"{STEM}.safetensors"), 0
  for path in files:
    tensors = load_file(path)
    assert all(index["weight_map"].pop(key) == path.name for key in tensors)
    nbytes = sum(x.nbytes for x in tensors.values())
    assert nbytes <= SHARD_BYTES or len(tensors) == 1
    total += nbytes
    for key, x in tensors.items():
      np.testing.assert_array_equal(x, expected.pop(key))
  assert not index["weight_map"] and not expected
  assert index["metadata"]["total_size"] == total


def test_the_transformer_of_a_pipeline_is_loaded(tmp_path, whole, params):
  (tmp_path / "pipeline" / "vae").mkdir(parents=True)
  (tmp_path / "pipeline" / "model_index.json").write_text("{}")
  whole.rename(tmp_path / "pipeline" / "transformer")
  assert_same(load_pytorch(tmp_path / "pipeline")[1], params)


def test_text_queries_that_differ_are_kept(tmp_path):
  cfg = dataclasses.replace(NEXT, text_query=True)
  params = random_params(cfg)
  save_pytorch(params, cfg, tmp_path / "out", "diffusers")
  found, back = load_pytorch(tmp_path / "out")
  assert found == cfg
  assert_same(back, params)


def test_one_norm_that_differs_separates_all_queries(whole, params):
  path = whole / f"{STEM}.safetensors"
  state = load_file(path)
  state["layers.1.attn2.norm_q.bias"][3] += 1
  save_file(state, path)
  cfg, back = load_pytorch(whole)
  assert cfg == dataclasses.replace(NEXT, text_query=True)
  attention = back["blocks"]["attention"]
  assert_same(attention["text_query"], attention["query"])
  moved = attention["text_query_norm"]["bias"]
  moved = moved - attention["query_norm"]["bias"]
  assert np.count_nonzero(moved) == 1 and moved[1, 0, 3] == 1


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (f"{STEM}-00002-of-", f"lacks {STEM}-00002-of-"),
    (f"{STEM}.safetensors.index", f"neither {STEM}.safetensors nor"),
    ("config", "config.json is missing"),
  ],
)
def test_missing_files(sharded, name, message):
  (path,) = sharded.glob(f"{name}*")
  path.unlink()
  with pytest.raises(FileNotFoundError, match=message):
    load_pytorch(sharded)


def test_a_variant_is_not_loaded(whole):
  path = whole / f"{STEM}.safetensors"
  path.rename(whole / f"{STEM}.fp16.safetensors")
  with pytest.raises(FileNotFoundError, match=r"fp16.*no variant"):
    load_pytorch(whole)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"_class_name": "Lumina2Transformer2DModel"},
      "class Lumina2Transformer2D",
    ),
    ({"_class_name": None}, "config.json is of class none"),
    ({"cross_attention_dim": None}, "config.json lacks 'cross_attention_dim'"),
    ({"num_layers": 3}, r"layers.{2}.attn1.to_q.weight: (32, 32)"),
    ({"num_layers": 1}, r"layers.{1}.attn1.to_q.weight: (32, 32)"),
    ({"num_kv_heads": 4}, "expected (32, 32), found (16, 32)"),
    ({"num_attention_heads": 5}, "width = 32 is not divisible by heads = 5"),
    ({"qk_norm": False}, "layers.{0-1}.attn1.norm_q.weight"),
  ],
)
def test_configs_that_do_not_fit(whole, values, message):
  change(whole / "config.json", **values)
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    load_pytorch(whole)
  assert str(whole) in str(error.value)


@pytest.mark.parametrize(
  ("name", "text"),
  [
    (f"{STEM}.safetensors.index.json", "{"),
    (f"{STEM}.safetensors.index.json", "[]"),
    (f"{STEM}.safetensors.index.json", "{}"),
    ("config.json", "{"),
    ("config.json", "[]"),
  ],
)
def test_broken_json_files(sharded, name, text):
  (sharded / name).write_text(text)
  with pytest.raises(ValueError, match=re.escape(str(sharded / name))):
    load_pytorch(sharded)


def test_a_whole_file_beside_an_index_is_ignored(sharded, params):
  # As in diffusers; transformers reads the whole file.
  save_pytorch(random_params(NEXT, seed=1), NEXT, sharded / "a.safetensors")
  (sharded / "a.safetensors").rename(sharded / f"{STEM}.safetensors")
  assert_same(load_pytorch(sharded)[1], params)


def test_model_args_override_config_json(whole, params):
  change(whole / "config.json", num_layers=3, norm_eps=1e-6)
  cfg, back = load_pytorch(whole, {"num_layers": 2, "norm_eps": 1e-5})
  assert cfg == NEXT
  assert_same(back, params)
  # They have the names of config.json.
  with pytest.raises(ValueError, match="'n_layers'; did you mean 'num_layers'"):
    load_pytorch(whole, {"num_layers": 2, "n_layers": 2})
