"""What the PyTorch layouts do not support raises before anything is written."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
from flax import traverse_util
from support.families import (
  FAMILIES,
  MEDIUM,
  NEXT,
  random_params,
  shapes_once,  # noqa: F401
)

from lumina_jax.backbone import ModelConfig
from lumina_jax.interop import native, save_pytorch
from lumina_jax.interop.pytorch_writer import write


def without_params(cfg: ModelConfig, medium: str = "image"):
  """Weights that are refused before any of them is read."""
  return SimpleNamespace(cfg=cfg, medium=medium, args={})


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("out", {"layout": "keras"}, "unknown layout 'keras'; use one of: lumina"),
    ("out", {"dtype": "int8"}, "unknown dtype 'int8'; use one of: float32, "),
    ("a.pth", {"layout": "diffusers"}, "a.pth: diffusers loads folders"),
    (
      "out",
      {"model_args": {"vae": object()}},
      "model_args: vae is refused: it holds a object",
    ),
    ("out.pt", {}, "out.pt looks like a file: files end in .safetensors or .p"),
    ("out.ckpt", {}, "out.ckpt looks like a file"),
    ("out.bin", {"layout": "diffusers"}, "out.bin looks like a file"),
    ("gs://bucket/a", {}, "buckets are not supported; name a local path"),
  ],
)
def test_arguments_of_save_pytorch(tmp_path, name, kwargs, message):
  path = name if "://" in name else tmp_path / name
  with pytest.raises(ValueError, match=re.escape(message)):
    save_pytorch(random_params(NEXT), NEXT, path, **kwargs)
  assert not list(tmp_path.iterdir())


def test_our_own_folder_is_not_named_like_a_file(tmp_path):
  weights = without_params(NEXT)
  with pytest.raises(ValueError, match=r"out\.ckpt looks like a file"):
    native.write_native(weights, tmp_path / "out.ckpt", np.dtype(np.float32))


def test_parameters_of_another_network(tmp_path):
  params = random_params(NEXT)
  whole = {"backbone": params, "null_text": {"x": np.zeros(3)}}
  with pytest.raises(ValueError, match=r"pipeline; pass params\['backbone'\]"):
    save_pytorch(whole, NEXT, tmp_path / "out")
  flat = traverse_util.flatten_dict(params)
  del flat["final", "bias"]
  flat["head", "kernel"] = np.zeros((2, 2))
  flat["pad",] = np.zeros(5)
  wrong = traverse_util.unflatten_dict(flat)
  with pytest.raises(ValueError, match="final/bias") as error:
    save_pytorch(wrong, NEXT, tmp_path / "out")
  assert "head/kernel: (2, 2)" in str(error.value)
  assert "pad: expected (32,), found (5,)" in str(error.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("layout", "changes", "message"),
  [
    ("lumina", dict(text_query=True), "text_query = True (must be False)"),
    ("lumina", dict(separators=True), "separators = True"),
    ("lumina", dict(pad_token=False), "pad_token = False"),
    ("lumina", dict(cond_width=16), "cond_width = 16 (must be 32)"),
    ("lumina", dict(tanh_gate=False), "tanh_gate = False"),
    ("lumina", dict(patch=(2, 4)), "patch = (2, 4) (must be (2, 2))"),
    ("lumina", dict(patch=(1, 2, 2)), "patch = (1, 2, 2)"),
    ("lumina", dict(num_labels=3), "num_labels = 3"),
    ("lumina", dict(time_scale=1000.0), "time_scale = 1000.0"),
    ("lumina", dict(rope_theta=2e4), "rope_theta = 20000.0"),
    ("diffusers", dict(cond_width=16), "cond_width = 16"),
    ("diffusers", dict(pad_token=False), "pad_token = False"),
    ("diffusers", dict(rope_theta=2e4), "rope_theta = 20000.0"),
    ("diffusers", dict(rope_ntk=2.0), "rope_ntk = 2.0"),
    ("diffusers", dict(patch=(2, 4)), "patch = (2, 4) (must be (2, 2))"),
  ],
)
def test_networks_that_a_layout_does_not_support(
  tmp_path, layout, changes, message
):
  cfg = dataclasses.replace(NEXT, **changes)
  with pytest.raises(ValueError, match=re.escape(message)):
    write(without_params(cfg), tmp_path / "out", layout)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "next_text"])
def test_diffusers_supports_text_to_image_next_dit_only(tmp_path, name):
  cfg = FAMILIES[name]
  wrong = {
    "flag_text": ["raster = True", "shift = True", "separators = True"],
    "flag_imagenet": ["raster = True", "num_labels = 10"],
    "next_imagenet": ["pre_norm_scale = False", "num_labels = 10"],
    "audio": ["does not support the medium 'audio', only 'image'"],
  }.get(name, [f"routing = {cfg.routing}"])
  weights = without_params(cfg, MEDIUM[name])
  with pytest.raises(ValueError, match="LuminaNextDiT2DModel") as error:
    write(weights, tmp_path / "out", "diffusers")
  for message in [*wrong, "layout='lumina'"]:
    assert message in str(error.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("medium", "cfg", "message"),
  [
    ("video", NEXT, "the medium 'video'; use one of: image, audio"),
    ("", NEXT, "the medium ''; use one of: image, audio"),
    ("audio", NEXT, "no such audio network: patch = (2, 2) (must be (2,))"),
    (
      "image",
      FAMILIES["audio"],
      "no such image network: patch = (1,) (must be (1, 1))",
    ),
  ],
)
def test_media_that_the_original_does_not_support(
  tmp_path, medium, cfg, message
):
  with pytest.raises(ValueError, match=re.escape(message)):
    save_pytorch(random_params(cfg), cfg, tmp_path / "out", medium=medium)
  assert not list(tmp_path.iterdir())
