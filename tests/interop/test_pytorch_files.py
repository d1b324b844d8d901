"""Which files of a path are read: broken ones, shards, EMA or raw weights."""

import dataclasses
import os
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.families import (
  FAMILIES,
  NEEDED_ARGS,
  NEXT,
  assert_same,
  random_params,
  shapes_once,  # noqa: F401
  state_dict,
)

from lumina_jax.interop import load_pytorch, load_weights, pth, save_pytorch
from lumina_jax.interop.pytorch import open_pytorch

# How fairscale splits a network over ranks. Column-parallel layers split their
# outputs and biases, row-parallel layers their inputs, embeddings their
# features. Norms over heads and gates cover the heads of one rank. Every rank
# has all other tensors whole.
COLUMN = (
  *("x_embedder", "t_embedder.mlp.0", "cap_embedder.1", "adaLN_modulation.1"),
  *("final_layer.linear", "attention.wq", "attention.wk", "attention.wv"),
  *("attention.wk_y", "attention.wv_y", ".w1", ".w3"),
)
ROW = ("t_embedder.mlp.2", "attention.wo", ".w2")
HEAD_NORMS = ("attention.q_norm", "attention.k_norm", "attention.ky_norm")
SHARDED = {
  "text": dataclasses.replace(NEXT, kv_heads=4),
  "moe_both": FAMILIES["moe_both"],
}


def split_axis(key: str) -> int | None:
  """The axis along which ranks split a tensor."""
  layer, _, kind = key.rpartition(".")
  if layer.endswith(COLUMN + HEAD_NORMS) or key.endswith("attention.gate"):
    return 0
  if kind == "weight" and layer.endswith((*ROW, "embedding_table")):
    return 1
  return None


def split(state, count) -> list[dict[str, np.ndarray]]:
  """The state dicts that the ranks of a run save."""
  ranks = [{} for _ in range(count)]
  for key, x in state.items():
    axis = split_axis(key)
    parts = [x] * count if axis is None else np.split(x, count, axis=axis)
    for rank, part in zip(ranks, parts, strict=True):
      rank[key] = np.ascontiguousarray(part)
  return ranks


def save(folder, ranks, ema="", suffix=".safetensors"):
  folder.mkdir(exist_ok=True)
  for number, rank in enumerate(ranks):
    name = f"consolidated{ema}.{number:02d}-of-{len(ranks):02d}{suffix}"
    if suffix == ".safetensors":
      save_file(rank, folder / name)
      continue
    with pth.Writer(folder / name) as file:
      for key, x in rank.items():
        file.add(key, x)
  return folder


@pytest.fixture(scope="module")
def text():
  """Parameters of a text network, and its state dict in the original code."""
  params = random_params(SHARDED["text"])
  return params, state_dict(SHARDED["text"], params)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
  ("name", "break_file", "message"),
  [
    ("a.safetensors", cut, "cut short or not a safetensors file"),
    ("a.pth", cut, "cut short"),
    ("a.safetensors", lambda x: x.write_text(""), "cut short or not a safet"),
    ("a.pth", lambda x: x.write_text(""), "is empty"),
    ("a.safetensors", lambda x: x.write_text("poem\n" * 9), "cut short or not"),
    ("a.pth", lambda x: x.write_text("poem\n" * 9), "cut short or not a PyTor"),
  ],
)
def test_broken_files(tmp_path, text, name, break_file, message):
  save_pytorch(text[0], SHARDED["text"], tmp_path / name)
  break_file(tmp_path / name)
  with pytest.raises(ValueError, match=message) as error:
    load_pytorch(tmp_path / name)
  assert str(tmp_path / name) in str(error.value)


def test_a_path_without_weights_says_what_was_expected(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds: nothing") as error:
    load_pytorch(tmp_path)
  for name in ("00-of-01.safetensors or .pth", "diffusion_pytorch_model"):
    assert name in str(error.value)
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(FileNotFoundError, match=r"holds: notes\.txt"):
    load_pytorch(tmp_path)
  with pytest.raises(FileNotFoundError, match="nowhere does not exist; expect"):
    load_pytorch(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="gs://bucket/a: buckets are not supp"):
    load_weights("gs://bucket/a")


@pytest.mark.parametrize(("name", "count"), [("text", 2), ("moe_both", 4)])
def test_shards_are_merged(tmp_path, caplog, name, count):
  cfg = SHARDED[name]
  params = random_params(cfg)
  folder = save(tmp_path / "run", split(state_dict(cfg, params), count))
  found, back = load_pytorch(folder, NEEDED_ARGS.get(name))
  assert found == cfg
  assert_same(back, params)
  assert f"{count} shards: the original normalizes queries" in caplog.text


def test_a_merged_feed_forward_computes_what_its_shards_do(text):
  # Partial sums over ranks make the whole: the split axes above are right.
  params, state = text
  x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)

  def feed_forward(x, state):
    one, two, three = (
      state[f"layers.1.feed_forward.w{i}.weight"].T for i in (1, 2, 3)
    )
    return (np.tanh(x @ one) * (x @ three)) @ two

  ours = {
    k: v["kernel"][1] for k, v in params["blocks"]["feed_forward"].items()
  }
  whole = (np.tanh(x @ ours["gate"]) * (x @ ours["up"])) @ ours["down"]
  parts = sum(feed_forward(x, rank) for rank in split(state, 4))
  np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_pth_shards_without_norms_do_not_warn(tmp_path, caplog):
  cfg = dataclasses.replace(SHARDED["text"], qk_norm=False)
  params = random_params(cfg)
  ranks = split(state_dict(cfg, params), 2)
  folder = save(tmp_path / "run", ranks, suffix=".pth")
  assert_same(load_pytorch(folder)[1], params)
  assert not caplog.text


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_one_of_several_shards_is_refused(tmp_path, text, suffix):
  save(tmp_path / "run", split(text[1], 2), suffix=suffix)
  path = tmp_path / "run" / f"consolidated.00-of-02{suffix}"
  message = f"{path} is one of 2 shards; pass the folder"
  with pytest.raises(ValueError, match=re.escape(message)):
    load_pytorch(path)
  save(tmp_path / "one", [text[1]], suffix=suffix)
  path = tmp_path / "one" / f"consolidated.00-of-01{suffix}"
  assert_same(load_pytorch(path)[1], text[0])


def lose_shards(folder, ranks):
  save(folder, ranks)
  (folder / "consolidated.01-of-02.safetensors").unlink()


def change_keys(folder, ranks):
  del ranks[1]["layers.1.attention.wq.weight"]
  ranks[0]["surplus"] = np.zeros(3, np.float32)
  save(folder, ranks)


def add_another_set(folder, ranks):
  save(folder, ranks)
  save(folder, ranks[:1])


def change_shape(folder, ranks):
  key = "layers.0.feed_forward.w3.weight"
  ranks[1][key] = ranks[1][key][:-1]
  save(folder, ranks)


@pytest.mark.parametrize(
  ("spoil", "kind", "message"),
  [
    (lose_shards, FileNotFoundError, "lacks shard 01-of-02"),
    (
      change_keys,
      ValueError,
      "shards 0 and 1 hold different keys: layers.1.attention.wq.weight, surpl",
    ),
    (add_another_set, ValueError, "several sets of shards: [1, 2]"),
    (
      change_shape,
      ValueError,
      "layers.{0}.feed_forward.w3.weight: expected (96, 32), found (95, 32)",
    ),
  ],
)
def test_broken_sets_of_shards(tmp_path, text, spoil, kind, message):
  spoil(tmp_path / "run", split(text[1], 2))
  with pytest.raises(kind, match=re.escape(message)):
    load_pytorch(tmp_path / "run")


def test_ema_weights_are_preferred(tmp_path):
  params = {ema: random_params(NEXT, seed=ema) for ema in (False, True)}
  folder = save(tmp_path / "run", [state_dict(NEXT, params[False])])
  # In another format, which must not decide.
  save(folder, [state_dict(NEXT, params[True])], ema="_ema", suffix=".pth")
  for ema in (None, True, False):
    assert_same(load_pytorch(folder, ema=ema)[1], params[ema is not False])
    assert open_pytorch(folder, ema=ema).ema is (ema is not False)


@pytest.mark.parametrize(
  ("name", "ema", "message"),
  [
    ("", True, r"no EMA weights, only raw ones; pass ema=False \(--noema\)"),
    ("_ema", False, r"no raw weights, only EMA ones; pass ema=True \(--ema\)"),
  ],
)
def test_missing_ema_or_raw_weights(tmp_path, text, name, ema, message):
  save(tmp_path / "run", [text[1]], ema=name)
  with pytest.raises(FileNotFoundError, match=message):
    load_pytorch(tmp_path / "run", ema=ema)
  assert open_pytorch(tmp_path / "run").ema is not ema


@pytest.mark.parametrize(
  ("name", "layout"),
  [("out", "lumina"), ("a.pth", "lumina"), ("out", "diffusers")],
)
def test_one_set_of_weights_does_not_say_whether_it_is_ema(
  tmp_path, name, layout
):
  path = tmp_path / name
  save_pytorch(random_params(NEXT), NEXT, path, layout)
  assert open_pytorch(path).ema is None
  for ema in (True, False):
    with pytest.raises(FileNotFoundError, match="does not say whether") as e:
      open_pytorch(path, ema=ema)
    assert str(path) in str(e.value)


def test_raw_and_ema_names_are_one_file(tmp_path):
  save_pytorch(random_params(NEXT), NEXT, tmp_path / "out")
  raw, ema = sorted((tmp_path / "out").glob("consolidated*"))
  assert os.path.samefile(raw, ema)  # It takes no room.


def test_safetensors_are_preferred_to_pth(tmp_path):
  params = [random_params(NEXT, seed) for seed in (0, 1)]
  for suffix, one in zip((".safetensors", ".pth"), params, strict=True):
    save(tmp_path / "run", [state_dict(NEXT, one)], suffix=suffix)
  assert_same(load_pytorch(tmp_path / "run")[1], params[0])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path, text, prefix):
  state = {f"{prefix}{key}": x for key, x in text[1].items()}
  path = save(tmp_path / "run", [state], suffix=".pth")
  found, back = load_pytorch(path)
  assert found == SHARDED["text"]
  assert_same(back, text[0])
  # A key without it shows that it is not a wrapper's.
  state["pad_token"] = state.pop(f"{prefix}pad_token")
  save(path, [state])
  with pytest.raises(ValueError, match="not the state dict of a Lumina netw"):
    load_pytorch(path)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_a_checkpoint_of_the_whole_audio_model(tmp_path, suffix):
  audio = FAMILIES["audio"]
  params = random_params(audio)
  path = tmp_path / f"epoch=3{suffix}"
  with pth.Writer(path) as file:
    file.add("scale_factor", np.float32(0.7))
    file.add("first_stage_model.encoder.weight", np.ones(3, np.float32))
    for key, x in state_dict(audio, params, "audio").items():
      file.add(f"model.diffusion_model.{key}", x)
    file.add("cond_stage_model.x_embedder.weight", np.ones(3, np.float32))
  # The whole model calls its network with steps to 999: time_scale = 1000.
  found, back = load_pytorch(path)
  assert found == audio
  assert_same(back, params)
