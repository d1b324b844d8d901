"""Folders of language models: loaded tensor by tensor, refused if broken."""

import jax
import ml_dtypes
import numpy as np
import pytest
from support.language_folder import (
  DEPTH,
  FFN,
  HEAD_DIM,
  HEADS,
  KV_HEADS,
  LLAMA,
  WIDTH,
  shard,
  tensors,
  write,
)

from lumina_jax.interop import safetensors
from lumina_jax.interop.language import load_language
from lumina_jax.interop.language_config import language_config


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("hidden", ["last", "penultimate"])
def test_arrays_are_converted(tmp_path, hidden):
  cfg, params = load_language(write(tmp_path), hidden, "float32")
  found = tensors()
  assert cfg == language_config(LLAMA, hidden)
  np.testing.assert_array_equal(
    params["embed"], found.pop("model.embed_tokens.weight")
  )
  attention = params["blocks"]["attention"]
  for i in range(cfg.layers):
    theirs = lambda name, i=i: found[f"model.layers.{i}.{name}.weight"]  # noqa: E731
    query = theirs("self_attn.q_proj")
    for head in range(HEADS):
      rows = query[head * HEAD_DIM : (head + 1) * HEAD_DIM]
      np.testing.assert_array_equal(
        attention["query"]["kernel"][i, :, head], rows.T
      )
    value = theirs("self_attn.v_proj").T.reshape(WIDTH, KV_HEADS, HEAD_DIM)
    np.testing.assert_array_equal(attention["value"]["kernel"][i], value)
    out = theirs("self_attn.o_proj").T.reshape(HEADS, HEAD_DIM, WIDTH)
    np.testing.assert_array_equal(attention["out"]["kernel"][i], out)
    down = params["blocks"]["feed_forward"]["down"]["kernel"][i]
    np.testing.assert_array_equal(down, theirs("mlp.down_proj").T)
    norm = params["blocks"]["feed_forward_norm"]["scale"][i]
    np.testing.assert_array_equal(norm, theirs("post_attention_layernorm"))
  assert ("final_norm" in params) == (hidden == "last")


def test_unused_tensors_are_not_read(tmp_path, monkeypatch):
  reads = []
  read = safetensors._read
  monkeypatch.setattr(
    safetensors, "_read", lambda path, key: reads.append(key) or read(path, key)
  )
  load_language(write(tmp_path), "penultimate", "float32")
  assert len(reads) == len(set(reads)) == 1 + 9 * (DEPTH - 1)
  assert not [key for key in reads if f"layers.{DEPTH - 1}" in key]
  reads.clear()
  load_language(tmp_path, "last", "float32")
  assert len(reads) == 2 + 9 * DEPTH


def test_the_last_layer_may_be_missing_if_it_is_unused(tmp_path):
  kept = {k: x for k, x in tensors().items() if f"layers.{DEPTH - 1}" not in k}
  write(tmp_path, kept)
  load_language(tmp_path, "penultimate", "float32")
  with pytest.raises(ValueError, match=r"9 missing:\n  layers\.\{2\}"):
    load_language(tmp_path, "last", "float32")


def test_other_folders_hold_the_same(tmp_path):
  _, expected = load_language(write(tmp_path / "one"), "last", "float32")
  rotary = "model.layers.1.self_attn.rotary_emb.inv_freq"  # In old files.
  for folder in (
    shard(tmp_path / "shards"),
    write(tmp_path / "headless", tensors(prefix="")),
    write(tmp_path / "pipeline" / "text_encoder").parent,
    write(tmp_path / "old", tensors() | {rotary: np.ones(4, np.float32)}),
  ):
    same(load_language(folder, "last", "float32")[1], expected)


@pytest.mark.parametrize(
  ("stored", "dtype"),
  [
    (np.float16, "float32"),
    (ml_dtypes.bfloat16, "float16"),
    (np.float32, "bfloat16"),
  ],
)
def test_dtypes(tmp_path, stored, dtype):
  found = {key: x.astype(stored) for key, x in tensors().items()}
  cfg, params = load_language(write(tmp_path, found), "last", dtype)
  assert cfg.dtype == dtype
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(dtype)}
  expected = found["model.layers.1.mlp.up_proj.weight"].astype(dtype).T
  up = params["blocks"]["feed_forward"]["up"]["kernel"][1]
  np.testing.assert_array_equal(up, expected)


def gone(folder):
  folder.rename(folder.with_name("moved"))


def no_config(folder):
  (folder / "config.json").unlink()


def a_list(folder):
  (folder / "config.json").write_text("[1]")


def pickled(folder):
  path = folder / "model.safetensors"
  path.rename(folder / "pytorch_model.bin")


def truncated(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1000])


def shard_gone(folder):
  (folder / "model.safetensors").unlink()
  shard(folder)
  (folder / "model-00002-of-00003.safetensors").unlink()


def shard_truncated(folder):
  (folder / "model.safetensors").unlink()
  shard(folder)
  path = folder / "model-00003-of-00003.safetensors"
  path.write_bytes(path.read_bytes()[:-1000])


def no_map(folder):
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors.index.json").write_text("{}")


def lacking(folder):
  found = tensors()
  for i in range(DEPTH):
    del found[f"model.layers.{i}.mlp.up_proj.weight"]
  write(folder, found)


def with_biases(folder):
  bias = np.zeros(HEADS * HEAD_DIM, np.float32)
  write(folder, tensors() | {"model.layers.0.self_attn.q_proj.bias": bias})


def one_layer_more(folder):
  write(folder, config=LLAMA | {"num_hidden_layers": DEPTH - 1})


def other_width(folder):
  write(folder, config=LLAMA | {"intermediate_size": FFN + 8})


def int_weights(folder):
  write(folder, config=LLAMA | {"quantization_config": {"bits": 4}})


@pytest.mark.parametrize(
  ("spoil", "kind", "message"),
  [
    (gone, FileNotFoundError, "does not exist; expected a folder with"),
    (no_config, FileNotFoundError, "config.json is missing"),
    (a_list, ValueError, "config.json cannot be read"),
    (pickled, FileNotFoundError, r"pytorch_model.bin. Save the.*safetensors"),
    (truncated, ValueError, r"model.safetensors is cut short"),
    (shard_gone, FileNotFoundError, "lacks model-00002-of-00003.safetensors"),
    (shard_truncated, ValueError, "model-00003-of.*is cut short"),
    (no_map, ValueError, "it has no weight_map"),
    (lacking, ValueError, r"3 missing:\n  layers\.\{0-2\}\.mlp\.up_proj"),
    (with_biases, ValueError, r"1 unexpected:\n.*q_proj\.bias: \(32,\)"),
    (one_layer_more, ValueError, r"9 unexpected:\n  layers\.\{2\}"),
    (other_width, ValueError, r"expected \(32, 16\), found \(24, 16\)"),
    (int_weights, ValueError, "quantization_config"),
  ],
)
def test_broken_folders(tmp_path, spoil, kind, message):
  folder = write(tmp_path / "folder")
  spoil(folder)
  with pytest.raises(kind, match=message) as caught:
    load_language(folder, "last", "float32")
  assert str(folder) in str(caught.value)
