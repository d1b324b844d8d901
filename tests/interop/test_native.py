"""Our own folders: what is stored beside the weights, and broken folders."""

import json
import re

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file
from support.families import (
  NEXT,
  assert_same,
  random_params,
  shapes_once,  # noqa: F401
)

from lumina_jax.files import schema
from lumina_jax.flow.objective import PLAIN, Objective
from lumina_jax.interop import load_weights, native, orbax
from lumina_jax.interop.load import open_weights
from lumina_jax.interop.weights import in_memory, read_all

FLOAT32 = np.dtype(np.float32)
NOISE = Objective(prediction="noise")
MODEL = schema.to_dict(NEXT)
SECTIONS = {
  "medium": "video",
  "model": MODEL,
  "objective": schema.to_dict(NOISE),
  "training": {"steps": 10},  # Sections of other rooms are not read.
}


def flatten(params):
  return traverse_util.flatten_dict({"backbone": params})


def write_export(folder, params, **sections):
  folder.mkdir()
  values = {k: v for k, v in (SECTIONS | sections).items() if v is not None}
  (folder / "config.json").write_text(json.dumps(values))
  tensors = {".".join(path): x for path, x in flatten(params).items()}
  save_file(tensors, folder / "model.safetensors")
  return folder


def write_workdir(folder, raw, ema):
  (folder / "checkpoints").mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(SECTIONS))
  (folder / "checkpoints" / "2").mkdir()  # 10 is newer, though not by name.
  raw = {("params", *path): x for path, x in flatten(raw).items()}
  for item, flat in (("train", raw), ("ema", flatten(ema))):
    shapes = {path: x.shape for path, x in flat.items()}
    path = folder / "checkpoints" / "10" / item
    orbax.write(path, shapes, FLOAT32, flat.__getitem__)
  return folder


def test_a_folder_of_weights_alone(tmp_path):
  params = random_params(NEXT)
  weights = in_memory(NEXT, params, "audio")
  native.write_native(weights, tmp_path / "a", FLOAT32)
  values = json.loads((tmp_path / "a" / "network.json").read_text())
  assert values == {"medium": "audio", "model": MODEL}
  weights = open_weights(tmp_path / "a")
  assert (weights.cfg, weights.medium, weights.ema) == (NEXT, "audio", None)
  assert_same(read_all(weights), params)
  assert native.read_objective(tmp_path / "a") == PLAIN


def test_an_export(tmp_path):
  params = random_params(NEXT)
  folder = write_export(tmp_path / "a", params)
  weights = open_weights(folder)
  assert (weights.cfg, weights.medium, weights.ema) == (NEXT, "video", None)
  assert_same(read_all(weights), params)
  assert native.read_objective(folder) == NOISE


def test_a_workdir(tmp_path):
  raw, ema = random_params(NEXT, 0), random_params(NEXT, 1)
  folder = write_workdir(tmp_path / "run", raw, ema)
  for choice, params in ((None, ema), (True, ema), (False, raw)):
    weights = open_weights(folder, choice)
    assert (weights.cfg, weights.medium) == (NEXT, "video")
    assert weights.ema is (choice is not False)
    assert_same(read_all(weights), params)
  assert native.read_objective(folder) == NOISE


@pytest.mark.parametrize(
  ("sections", "message"),
  [
    ({"medium": None}, "describes no network of ours: it lacks medium"),
    ({"model": None, "medium": None}, "it lacks medium, model"),
    ({"medium": 3}, "medium = 3 must be of type str"),
    ({"model": MODEL | {"widht": 1}}, "model.widht; did you mean 'width'"),
    ({"model": MODEL | {"depth": 3}}, "the tensors do not fit this network"),
  ],
)
def test_broken_exports(tmp_path, sections, message):
  folder = write_export(tmp_path / "a", random_params(NEXT), **sections)
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    load_weights(folder)
  assert str(folder) in str(error.value)


def test_broken_folders_of_weights(tmp_path):
  folder = tmp_path / "a"
  folder.mkdir()
  (folder / "network.json").write_text("{")
  with pytest.raises(ValueError, match=r"network\.json cannot be read"):
    load_weights(folder)
  network = {"medium": "image", "model": MODEL}
  (folder / "network.json").write_text(json.dumps(network))
  with pytest.raises(ValueError, match="params cannot be read"):
    load_weights(folder)
  with pytest.raises(ValueError, match="leave model_args out"):
    load_weights(folder, model_args={"n_heads": 4})
  with pytest.raises(FileNotFoundError, match="leave --ema and --noema out"):
    load_weights(folder, ema=True)


def test_workdirs_without_the_needed_checkpoint(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "config.json").write_text(json.dumps(SECTIONS))
  with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
    load_weights(tmp_path)
  (tmp_path / "checkpoints" / "4").mkdir()
  with pytest.raises(ValueError, match="4/ema cannot be read"):
    load_weights(tmp_path)
