"""Which files of a folder are read: tensor-parallel shards, averaged or raw."""

import dataclasses
import os
import re

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
  state_dict,
)

from lumina_jax.interop import load_pytorch, pth, save_pytorch
from lumina_jax.interop.pytorch import open_pytorch

# What a rank of fairscale holds. A column-parallel layer is dealt by outputs,
# with its bias; a row-parallel one by inputs, each rank with the whole bias; an
# embedding by features. In between a rank sees its own heads alone, hence the
# norms over heads and the gates are of these. All else every rank has whole.
COLUMN = (
  *("x_embedder", "t_embedder.mlp.0", "cap_embedder.1", "adaLN_modulation.1"),
  *("final_layer.linear", "attention.wq", "attention.wk", "attention.wv"),
  *("attention.wk_y", "attention.wv_y", ".w1", ".w3"),
)
ROW = ("t_embedder.mlp.2", "attention.wo", ".w2")
OF_HEADS = ("attention.q_norm", "attention.k_norm", "attention.ky_norm")
SHARDED = {
  "text": dataclasses.replace(NEXT, kv_heads=4),
  "moe_both": FAMILIES["moe_both"],
}


def dealt(key: str) -> int | None:
  """The dimension along which ranks share a tensor."""
  layer, _, kind = key.rpartition(".")
  if layer.endswith(COLUMN + OF_HEADS) or key.endswith("attention.gate"):
    return 0
  if kind == "weight" and layer.endswith((*ROW, "embedding_table")):
    return 1
  return None


def shards(state, count) -> list[dict[str, np.ndarray]]:
  """A state dict as the ranks of a run save it."""
  ranks = [{} for _ in range(count)]
  for key, x in state.items():
    dim = dealt(key)
    parts = [x] * count if dim is None else np.split(x, count, axis=dim)
    for rank, part in zip(ranks, parts, strict=True):
      rank[key] = np.ascontiguousarray(part)
  return ranks


def save(folder, ranks, ema="", suffix=".safetensors") -> None:
  folder.mkdir(exist_ok=True)
  for number, rank in enumerate(ranks):
    name = f"consolidated{ema}.{number:02d}-of-{len(ranks):02d}{suffix}"
    if suffix == ".safetensors":
      save_file(rank, folder / name)
      continue
    with pth.Writer(folder / name) as file:
      for key, x in rank.items():
        file.add(key, x)


@pytest.fixture(scope="module")
def text():
  """A text network: parameters, and the same in the original's names."""
  params = random_params(SHARDED["text"])
  return params, state_dict(SHARDED["text"], params)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", SHARDED)
def test_shards_merge_to_the_whole(tmp_path, caplog, name, count):
  cfg = SHARDED[name]
  params = random_params(cfg)
  save(tmp_path / "run", shards(state_dict(cfg, params), count))
  found, back = load_pytorch(tmp_path / "run", UNTOLD.get(name))
  assert found == cfg
  assert_same(back, params)
  assert f"{count} shards: each normed the queries" in caplog.text


def test_a_sharded_feed_forward_computes_what_the_merged_one_does(text):
  # What the rules above mean: partial sums over ranks make the whole.
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
  parts = sum(feed_forward(x, rank) for rank in shards(state, 4))
  np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_pth_shards_and_no_warning_where_no_heads_are_normed(tmp_path, caplog):
  cfg = dataclasses.replace(SHARDED["text"], qk_norm=False)
  params = random_params(cfg)
  save(tmp_path / "run", shards(state_dict(cfg, params), 2), suffix=".pth")
  assert_same(load_pytorch(tmp_path / "run")[1], params)
  assert not caplog.text


def test_a_missing_shard_is_named(tmp_path, text):
  save(tmp_path / "run", shards(text[1], 4))
  for number in (0, 2):
    name = f"consolidated.{number:02d}-of-04.safetensors"
    (tmp_path / "run" / name).unlink()
  with pytest.raises(FileNotFoundError, match=r"lacks shard 00-of-04, 02-of-0"):
    load_pytorch(tmp_path / "run")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_shard_alone_is_not_taken_for_the_whole(tmp_path, text, suffix):
  save(tmp_path / "run", shards(text[1], 2), suffix=suffix)
  path = tmp_path / "run" / f"consolidated.00-of-02{suffix}"
  with pytest.raises(
    ValueError, match="one of 2 shards; give the fol"
  ) as error:
    load_pytorch(path)
  assert str(path) in str(error.value)
  save(tmp_path / "one", [text[1]], suffix=suffix)
  path = tmp_path / "one" / f"consolidated.00-of-01{suffix}"
  assert_same(load_pytorch(path)[1], text[0])


def test_shards_with_different_keys(tmp_path, text):
  ranks = shards(text[1], 2)
  del ranks[1]["layers.1.attention.wq.weight"]
  ranks[0]["surplus"] = np.zeros(3, np.float32)
  save(tmp_path / "run", ranks)
  with pytest.raises(ValueError, match="shards 0 and 1") as error:
    load_pytorch(tmp_path / "run")
  assert "layers.1.attention.wq.weight, surplus" in str(error.value)


def test_shards_of_two_sets(tmp_path, text):
  save(tmp_path / "run", shards(text[1], 2))
  save(tmp_path / "run", shards(text[1], 4))
  with pytest.raises(ValueError, match=r"several sets: \[2, 4\]"):
    load_pytorch(tmp_path / "run")


def test_a_shard_of_another_size_is_misshaped(tmp_path, text):
  ranks = shards(text[1], 2)
  key = "layers.0.feed_forward.w3.weight"
  ranks[1][key] = ranks[1][key][:-1]
  save(tmp_path / "run", ranks)
  expected = "layers.{0}.feed_forward.w3.weight: expected (96, 32), found (95"
  with pytest.raises(ValueError, match=re.escape(expected)):
    load_pytorch(tmp_path / "run")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """A folder with raw and averaged weights, and the parameters of each."""
  folder = tmp_path_factory.mktemp("both") / "run"
  params = {ema: random_params(NEXT, seed=ema) for ema in (False, True)}
  save(folder, [state_dict(NEXT, params[False])])
  # Of another format, which must not decide.
  save(folder, [state_dict(NEXT, params[True])], ema="_ema", suffix=".pth")
  return folder, params


@pytest.mark.parametrize("ema", [None, True, False])
def test_averaged_weights_unless_raw_ones_are_asked_for(both, ema):
  folder, params = both
  assert_same(load_pytorch(folder, ema=ema)[1], params[ema is not False])
  assert open_pytorch(folder, ema=ema).ema is (ema is not False)


@pytest.mark.parametrize(
  ("there", "asked", "message"),
  [
    ("", True, "no averaged weights; ask for the raw"),
    ("_ema", False, "no raw weights; ask for the averaged"),
  ],
)
def test_weights_that_are_not_there(tmp_path, there, asked, message):
  params = random_params(NEXT)
  save(tmp_path / "run", [state_dict(NEXT, params)], ema=there)
  with pytest.raises(FileNotFoundError, match=message):
    load_pytorch(tmp_path / "run", ema=asked)
  assert_same(load_pytorch(tmp_path / "run")[1], params)


@pytest.mark.parametrize(
  ("name", "layout"),
  [
    ("out", "lumina"),
    ("a.safetensors", "lumina"),
    ("a.pth", "lumina"),
    ("out", "diffusers"),
  ],
)
def test_one_set_of_weights_does_not_say_which(tmp_path, name, layout):
  params = random_params(NEXT)
  path = tmp_path / name
  save_pytorch(params, NEXT, path, layout)
  assert open_pytorch(path).ema is None
  assert_same(load_pytorch(path)[1], params)
  for ema in (True, False):
    with pytest.raises(FileNotFoundError, match="does not say which") as error:
      load_pytorch(path, ema=ema)
    assert str(path) in str(error.value)


def test_both_names_of_what_we_write_are_one_file(tmp_path):
  save_pytorch(random_params(NEXT), NEXT, tmp_path / "out")
  raw, averaged = sorted((tmp_path / "out").glob("consolidated*"))
  assert os.path.samefile(raw, averaged)  # Takes no room.


def test_safetensors_come_before_pth(tmp_path):
  params = [random_params(NEXT, seed) for seed in (0, 1)]
  for suffix, one in zip((".safetensors", ".pth"), params, strict=True):
    save(tmp_path / "run", [state_dict(NEXT, one)], suffix=suffix)
  assert_same(load_pytorch(tmp_path / "run")[1], params[0])
