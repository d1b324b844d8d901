"""Folders of language models: found, read a tensor at a time, refused."""

import json
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.configs import ROOT, fake_devices

from lumina_jax.encoders.language import LanguageConfig, encode_tokens
from lumina_jax.interop import safetensors
from lumina_jax.interop.language import load_language
from lumina_jax.interop.language_config import language_config

DEPTH, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 3, 16, 4, 2, 8, 24, 32
# As transformers 4 wrote it for LLaMA-2, but for the sizes.
LLAMA = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_size": WIDTH,
  "intermediate_size": FFN,
  "num_hidden_layers": DEPTH,
  "num_attention_heads": HEADS,
  "num_key_value_heads": KV_HEADS,
  "head_dim": HEAD_DIM,
  "vocab_size": VOCAB,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-05,
  "rope_scaling": None,
  "rope_theta": 20000.0,
  "pretraining_tp": 1,
  "tie_word_embeddings": False,
  "torch_dtype": "float16",
}
# As transformers 4 wrote it for Gemma-2B.
GEMMA_2B = {
  "model_type": "gemma",
  "attention_bias": False,
  "head_dim": 256,
  "hidden_act": "gelu",
  "hidden_activation": None,
  "hidden_size": 2048,
  "intermediate_size": 16384,
  "num_attention_heads": 8,
  "num_hidden_layers": 18,
  "num_key_value_heads": 1,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 10000.0,
  "vocab_size": 256000,
}
GEMMA_2_2B = GEMMA_2B | {
  "model_type": "gemma2",
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
  "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_key_value_heads": 4,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
}
QWEN3_4B = {
  "model_type": "qwen3",
  "attention_bias": False,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 2560,
  "intermediate_size": 9728,
  "max_window_layers": 36,
  "num_attention_heads": 32,
  "num_hidden_layers": 36,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": None,
  "rope_theta": 1000000,
  "sliding_window": None,
  "use_sliding_window": False,
  "vocab_size": 151936,
}


def tensors(prefix="model.", kv_heads=KV_HEADS) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  shapes = {"embed_tokens": (VOCAB, WIDTH), "norm": (WIDTH,)}
  for i in range(DEPTH):
    shapes |= {
      f"layers.{i}.self_attn.q_proj": (HEADS * HEAD_DIM, WIDTH),
      f"layers.{i}.self_attn.k_proj": (kv_heads * HEAD_DIM, WIDTH),
      f"layers.{i}.self_attn.v_proj": (kv_heads * HEAD_DIM, WIDTH),
      f"layers.{i}.self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
      f"layers.{i}.mlp.gate_proj": (FFN, WIDTH),
      f"layers.{i}.mlp.up_proj": (FFN, WIDTH),
      f"layers.{i}.mlp.down_proj": (WIDTH, FFN),
      f"layers.{i}.input_layernorm": (WIDTH,),
      f"layers.{i}.post_attention_layernorm": (WIDTH,),
    }
  found = {
    f"{prefix}{name}.weight": rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }
  if prefix:
    found["lm_head.weight"] = rng.standard_normal((VOCAB, WIDTH), np.float32)
  return found


def write(folder, found=None, config=LLAMA) -> pathlib.Path:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  save_file(tensors() if found is None else found, folder / "model.safetensors")
  return folder


def shard(folder, found=None) -> pathlib.Path:
  """Writes a folder whose tensors lie in three files, by an index."""
  found = tensors() if found is None else found
  write(folder, {})
  (folder / "model.safetensors").unlink()
  index = {}
  for part in range(3):
    name = f"model-{part + 1:05d}-of-00003.safetensors"
    keys = list(found)[part::3]
    save_file({key: found[key] for key in keys}, folder / name)
    index |= dict.fromkeys(keys, name)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": index})
  )
  return folder


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("hidden", ["last", "penultimate"])
def test_every_number_has_its_place(tmp_path, hidden):
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


def test_what_is_not_needed_is_not_read(tmp_path, monkeypatch):
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


def test_the_last_layer_may_be_missing_if_it_is_not_needed(tmp_path):
  kept = {k: x for k, x in tensors().items() if f"layers.{DEPTH - 1}" not in k}
  write(tmp_path, kept)
  load_language(tmp_path, "penultimate", "float32")
  with pytest.raises(ValueError, match=r"9 missing:\n  layers\.\{2\}"):
    load_language(tmp_path, "last", "float32")


@pytest.mark.parametrize("kind", ["shards", "bare", "pipeline", "rotary"])
def test_other_folders_hold_the_same(tmp_path, kind):
  _, expected = load_language(write(tmp_path / "one"), "last", "float32")
  other = tmp_path / "other"
  match kind:
    case "shards":
      shard(other)
    case "bare":
      write(other, tensors(prefix=""))
    case "pipeline":
      write(other / "text_encoder")
    case "rotary":  # Once part of every layer.
      key = "model.layers.1.self_attn.rotary_emb.inv_freq"
      write(other, tensors() | {key: np.ones(4, np.float32)})
  same(load_language(other, "last", "float32")[1], expected)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_of_numbers(tmp_path, stored, dtype):
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
    (gone, FileNotFoundError, "does not exist; looked for a folder with"),
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
def test_a_spoilt_folder(tmp_path, spoil, kind, message):
  folder = write(tmp_path / "folder")
  spoil(folder)
  with pytest.raises(kind, match=message) as caught:
    load_language(folder, "last", "float32")
  assert str(folder) in str(caught.value)


def test_the_published_models():
  """Sizes and rules of the models that Lumina and its successors use."""
  gemma = language_config(GEMMA_2B, "penultimate")
  assert gemma == LanguageConfig(
    vocab=256000,
    width=2048,
    depth=18,
    heads=8,
    kv_heads=1,
    head_dim=256,
    ffn_width=16384,
    activation="gelu_tanh",
    norm_eps=1e-6,
    query_scale=1 / 16,
    norm_offset=1.0,
    embed_scale=2048**0.5,
  )
  gemma_2 = language_config(GEMMA_2_2B, "penultimate")
  assert (gemma_2.score_cap, gemma_2.post_norms) == (50.0, True)
  assert gemma_2.windows[:3] == (4096, 1 << 30, 4096)
  assert (len(gemma_2.windows), gemma_2.query_scale) == (25, 1 / 16)
  qwen = language_config(QWEN3_4B, "last")
  assert (qwen.qk_norm, qwen.norm_offset, qwen.embed_scale) == (True, 0, 1)
  assert (qwen.rope_theta, qwen.head_dim, qwen.window) == (1e6, 128, 0)


def test_what_old_files_leave_out():
  values = {
    key: value
    for key, value in LLAMA.items()
    if key not in ("num_key_value_heads", "head_dim", "rope_theta")
  }
  cfg = language_config(values, "last")
  assert (cfg.kv_heads, cfg.head_dim) == (HEADS, WIDTH // HEADS)
  assert (cfg.rope_theta, cfg.rope_factor) == (1e4, 1.0)


@pytest.mark.parametrize(
  ("said", "theta", "factor"),
  [
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 20000, 4),
    ({"rope_scaling": {"rope_type": "default"}}, 20000, 1),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7, 1),
    (
      {
        "rope_parameters": {
          "rope_type": "linear",
          "rope_theta": 7.0,
          "factor": 2.0,
        }
      },
      7,
      2,
    ),
  ],
)
def test_how_files_say_rope(said, theta, factor):
  cfg = language_config(LLAMA | said, "last")
  assert (cfg.rope_theta, cfg.rope_factor) == (theta, factor)


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0}


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (LLAMA | {"model_type": "mistral"}, "'mistral'; .* llama, gemma, gemma2"),
    ({}, "model_type None"),
    (LLAMA | {"rope_scaling": LLAMA_3}, "the rule 'llama3'"),
    (LLAMA | {"attention_bias": True}, "attention_bias = True"),
    (LLAMA | {"mlp_bias": True}, "mlp_bias = True"),
    (LLAMA | {"hidden_act": "relu"}, "hidden_act = 'relu'"),
    (
      LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}},
      "partial_rotary_factor = 0.5",
    ),
    (GEMMA_2B | {"use_bidirectional_attention": True}, "bidirectional"),
    (
      GEMMA_2_2B | {"layer_types": ["sliding_attention"] * 26},
      "layer_types",
    ),
    (QWEN3_4B | {"use_sliding_window": True}, "use_sliding_window = True"),
    (
      {k: v for k, v in GEMMA_2_2B.items() if k != "query_pre_attn_scalar"},
      "lacks 'query_pre_attn_scalar'",
    ),
    ({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "'vocab_size'"),
  ],
)
def test_models_that_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    language_config(values, "last")


CODE = """
import json, sys
import jax, numpy as np
from lumina_jax.encoders.captions import CaptionEncoder
from lumina_jax.encoders.language import encode_tokens
from lumina_jax.interop.language import load_language
from lumina_jax.parallel.mesh import MeshConfig, make_mesh

class Numbers:
  identity = ""
  check = lambda self, vocab: None
  __call__ = lambda self, text: np.array([int(x) for x in text.split()])

mesh = make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
cfg, params = load_language(sys.argv[1], "last", "float32", mesh)
rows = np.load(sys.argv[2])
with jax.set_mesh(mesh):
  features = encode_tokens(cfg, params, *rows)
(alone,) = CaptionEncoder(cfg, Numbers(), lambda: params).encode(["3 1 4 1 5"])
np.savez(sys.argv[3], features=features, alone=alone)
shards = {
  jax.tree_util.keystr(path, simple=True, separator="/"): len(
    {str(s.index) for s in x.addressable_shards}
  )
  for path, x in jax.tree_util.tree_leaves_with_path(params)
}
try:
  load_language(sys.argv[1], "last", "float32",
                make_mesh(MeshConfig(data=1, fsdp=1, tensor=8)))
except ValueError as error:
  shards["error"] = str(error)
print(json.dumps(shards))
"""


@pytest.mark.parametrize(
  "kv_heads", [pytest.param(2, marks=pytest.mark.slow), 1]
)
@pytest.mark.slow
def test_eight_devices_give_the_same_features(tmp_path, kv_heads):
  config = LLAMA | {"num_key_value_heads": kv_heads}
  folder = write(tmp_path / "model", tensors(kv_heads=kv_heads), config)
  rows = np.array(
    [
      [[3, 1, 4, 1, 5, 0, 0, 0], [9, 2, 6, 5, 3, 5, 8, 9]],
      [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 2, 2, 2, 2, 2]],
    ],
    np.int32,
  )
  np.save(tmp_path / "rows.npy", rows)
  args = [folder, tmp_path / "rows.npy", tmp_path / "out.npz"]
  done = subprocess.run(
    [sys.executable, "-c", CODE, *map(str, args)],
    cwd=ROOT,
    env=fake_devices(8),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  # The compiler found a way between any two ways to cut an array.
  assert "Involuntary" not in done.stderr
  cfg, params = load_language(folder, "last", "float32")
  expected = np.asarray(encode_tokens(cfg, params, *rows))
  found = np.load(tmp_path / "out.npz")
  np.testing.assert_allclose(found["features"], expected, atol=2e-5)
  np.testing.assert_allclose(found["alone"], expected[0, :5], atol=2e-5)
  shards = json.loads(done.stdout.splitlines()[-1])
  # Over fsdp and context, and over tensor but for the one head.
  assert shards["embed"] == shards["blocks/attention/query/kernel"] == 8
  assert shards["blocks/feed_forward/down/kernel"] == 8
  assert shards["blocks/attention/key/kernel"] == (8 if kv_heads == 2 else 4)
  assert "does not divide over ('tensor',) = 8" in shards["error"]
