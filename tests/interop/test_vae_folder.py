"""Folders of diffusers' AutoencoderKL: saved, loaded, and refused if broken."""

import dataclasses
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from support.autoencoder import SMALL, random_params

from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.vae import PUBLISHED, boxed_shapes
from lumina_jax.interop.vae import load_vae, open_vae, save_vae
from lumina_jax.interop.vae_names import config_json, vae_config, vae_names
from lumina_jax.parallel.mesh import MeshConfig, make_mesh

STEM = "diffusion_pytorch_model"
ATTENTION = "decoder.mid_block.attentions.0"


@pytest.fixture(scope="module")
def small():
  return Autoencoder(SMALL, random_params(SMALL))


@pytest.fixture
def folder(tmp_path, small):
  save_vae(small, tmp_path / "vae")
  return tmp_path / "vae"


def change_config(folder, **values) -> None:
  """Changes values of config.json; None writes null."""
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder, change) -> None:
  path = folder / f"{STEM}.safetensors"
  tensors = load_file(path)
  change(tensors)
  save_file(tensors, path)


def assert_same(found, expected) -> None:
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_saved_autoencoder_is_loaded_bit_for_bit(folder, small):
  assert sorted(f.name for f in folder.iterdir()) == [
    "config.json",
    f"{STEM}.safetensors",
  ]
  for path in (folder, folder.parent, str(folder)):
    found = load_vae(path)
    assert found.cfg == SMALL
    assert_same(found.params, small.params)
    assert isinstance(found.params["decoder"]["first"]["bias"], jax.Array)


@pytest.mark.parametrize("cfg", [PUBLISHED["sd3"], SMALL], ids=["sd3", "small"])
def test_every_parameter_has_a_name(cfg):
  names = vae_names(cfg)
  paths = traverse_util.flatten_dict(nn.unbox(boxed_shapes(cfg))).keys()
  assert names.keys() == paths
  keys = [key for name in names.values() for key in name.keys]
  assert len(set(keys)) == len(keys) == len(names)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path, small, dtype):
  save_vae(small, tmp_path / "half", dtype=dtype)
  kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
  expected = jax.tree.map(lambda x: x.astype(kind), small.params)
  found = load_vae(tmp_path / "half")
  assert found.cfg.dtype == "float32"
  assert_same(
    found.params, jax.tree.map(lambda x: x.astype(np.float32), expected)
  )
  found = load_vae(tmp_path / "half", dtype="bfloat16")
  assert found.cfg == dataclasses.replace(SMALL, dtype="bfloat16")
  leaves = jax.tree.leaves(found.params)
  assert all(x.dtype == ml_dtypes.bfloat16 for x in leaves)
  if dtype == "bfloat16":
    assert_same(found.params, expected)


def test_parameters_are_put_on_a_mesh(folder, small):
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  found = load_vae(folder, mesh=mesh)
  assert_same(found.params, small.params)
  for leaf in jax.tree.leaves(found.params):
    assert leaf.sharding.mesh == mesh and leaf.sharding.is_fully_replicated


def test_several_files_with_an_index(folder, small):
  path = folder / f"{STEM}.safetensors"
  keys = sorted(load_file(path))
  tensors, names = load_file(path), {}
  for number in range(3):
    name = f"{STEM}-{number + 1:05d}-of-00003.safetensors"
    save_file({k: tensors[k] for k in keys[number::3]}, folder / name)
    names |= dict.fromkeys(keys[number::3], name)
  path.unlink()
  index = {"metadata": {}, "weight_map": names}
  (folder / f"{path.name}.index.json").write_text(json.dumps(index))
  assert_same(load_vae(folder).params, small.params)
  (folder / names[keys[0]]).unlink()
  with pytest.raises(FileNotFoundError, match=r"lacks .*-00001-of-00003"):
    load_vae(folder)


@pytest.mark.parametrize("kernel", [(), (1, 1)])
def test_names_and_kernels_of_old_checkpoints(folder, small, kernel):
  old = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
  }

  def change(tensors):
    for network in ("encoder", "decoder"):
      prefix = f"{network}.mid_block.attentions.0"
      for new, name in old.items():
        weight = tensors.pop(f"{prefix}.{new}.weight")
        weight = weight.reshape(*weight.shape, *kernel)
        tensors[f"{prefix}.{name}.weight"] = weight
        bias = tensors.pop(f"{prefix}.{new}.bias")
        tensors[f"{prefix}.{name}.bias"] = bias

  change_tensors(folder, change)
  assert_same(load_vae(folder).params, small.params)


def test_all_differences_of_tensors_are_listed(folder):
  def change(tensors):
    tensors["decoder.conv_out.extra"] = np.zeros(2, np.float32)
    del tensors["encoder.conv_in.weight"]
    tensors["quant_conv.bias"] = np.zeros(3, np.float32)
    # The old name beside the new one.
    tensors[f"{ATTENTION}.query.bias"] = np.zeros(32, np.float32)

  change_tensors(folder, change)
  with pytest.raises(ValueError) as error:
    open_vae(folder)
  for line in (
    "1 missing:\n  encoder.conv_in.weight: (16, 3, 3, 3)",
    "2 unexpected:",
    "decoder.conv_out.extra: (2,)",
    f"{ATTENTION}.query.bias: (32,)",
    "1 of another shape:\n  quant_conv.bias: expected (8,), found (3,)",
  ):
    assert line in str(error.value)


def test_config_json_round_trip():
  plain = dataclasses.replace(
    SMALL, quant_conv=False, post_quant_conv=False, mid_attention=False
  )
  for cfg in (*PUBLISHED.values(), SMALL, plain):
    assert vae_config(json.loads(json.dumps(config_json(cfg)))) == cfg


def test_defaults_of_a_config():
  """The folders of Stable Diffusion 1 and SDXL omit these values."""
  values = config_json(PUBLISHED["sd"])
  for name in (
    "scaling_factor",
    "shift_factor",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
    "force_upcast",
  ):
    del values[name]
  values |= {"_name_or_path": "elsewhere", "latents_mean": None}
  assert vae_config(values) == PUBLISHED["sd"]
  values |= {"shift_factor": None, "scaling_factor": 0.13025}
  assert vae_config(values) == PUBLISHED["sdxl"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(_class_name="AutoencoderTiny"), "of class AutoencoderTiny"),
    (dict(_class_name=None), "of class None"),
    (dict(act_fn="relu"), "act_fn = 'relu' (must be 'silu')"),
    (dict(out_channels=4), "out_channels = 4 (must be 3)"),
    (
      dict(down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
      "'AttnDownEncoderBlock2D'] (must be",
    ),
    (dict(up_block_types=["UpDecoderBlock2D"]), "up_block_types = ["),
    (dict(latents_mean=[0.1] * 4), "latents_mean = [0.1, 0.1, 0.1, 0.1] (un"),
    (dict(spatial="wavelet"), "spatial = 'wavelet' (unknown)"),
    (dict(norm_num_groups=5), "widths = (16, 32)"),
  ],
)
def test_configs_that_are_not_supported(folder, changes, message):
  change_config(folder, **changes)
  with pytest.raises(ValueError, match=re.escape(message)):
    load_vae(folder)


def test_folders_without_an_autoencoder(tmp_path, folder):
  with pytest.raises(FileNotFoundError, match=r"expected config\.json"):
    load_vae(tmp_path / "nowhere")
  (folder / f"{STEM}.safetensors").rename(folder / "model.safetensors")
  with pytest.raises(FileNotFoundError, match="no autoencoder in"):
    load_vae(folder)


def test_a_failed_save_keeps_the_folder(folder, small):
  with pytest.raises(FileExistsError, match="overwrite"):
    save_vae(small, folder)
  twice = Autoencoder(SMALL, jax.tree.map(lambda x: 2 * x, small.params))
  save_vae(twice, folder, overwrite=True)
  assert_same(load_vae(folder).params, twice.params)
  large = Autoencoder(SMALL, jax.tree.map(lambda x: 1e6 * x, small.params))
  with pytest.raises(ValueError, match="float16 cannot represent; use"):
    save_vae(large, folder, dtype="float16", overwrite=True)
  assert_same(load_vae(folder).params, twice.params)
  (folder / "notes.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="holds more than weights"):
    save_vae(small, folder, overwrite=True)


def test_arguments_of_save_vae(tmp_path, small):
  params = {**small.params, "decoder": small.params["encoder"]}
  with pytest.raises(ValueError, match="missing:\n  decoder/"):
    save_vae(Autoencoder(SMALL, params), tmp_path / "a")
  with pytest.raises(ValueError, match="dtype 'int8'"):
    save_vae(small, tmp_path / "a", dtype="int8")
  assert not (tmp_path / "a").exists()
