"""lumina convert: what users do with it, what it says, how it fails."""

import dataclasses
import json
import shutil
import subprocess
import sys
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from support.configs import ROOT, small_config, small_flags
from support.families import (
  FAMILIES,
  NEXT,
  assert_same,
  random_like,
  random_params,
  shapes_once,  # noqa: F401
)
from support.zygote import fork

from lumina_jax import convert
from lumina_jax.files import schema
from lumina_jax.interop import load_pytorch, native, save_pytorch
from lumina_jax.interop.weights import read_all
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import TrainState


def process(*words) -> subprocess.CompletedProcess:
  """The command as a user runs it."""
  return subprocess.run(
    [sys.executable, "-m", "lumina_jax.convert", *map(str, words)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope="module")
def command():
  """The command without a process of its own: words in, errors out."""
  before = set(flags.FLAGS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convert.start, "run", lambda main: None)
    convert.run()  # Defines the flags.

  def run(*words):
    with flagsaver.flagsaver():
      convert.main(flags.FLAGS(["convert", *map(str, words)]))

  yield run
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def lumina(tmp_path_factory):
  """A Next-DiT as its authors publish it."""
  folder = tmp_path_factory.mktemp("published") / "Lumina-Next"
  save_pytorch(random_params(NEXT), NEXT, folder)
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir, its raw and its averaged backbone."""
  config = small_config()
  folder = tmp_path_factory.mktemp("runs") / "mine"
  folder.mkdir()
  run_config.save(config, folder)
  network = config.network.shapes()
  raw, averaged = random_like(network, 0), random_like(network, 1)
  store = Checkpoints(folder, keep=2)
  for step in (2, 10):  # The newest, not the last by name.
    number = np.int32(step)
    params = (raw, averaged) if step == 10 else (averaged, averaged)
    store.save(TrainState(number, np.int32(0), *params, {"count": number}))
  store.close()
  return folder, config.model, raw["backbone"], averaged["backbone"]


def our_params(folder):
  return read_all(native.open_native(folder))


@pytest.mark.e2e
def test_from_pytorch_to_ours_as_a_process(lumina, tmp_path):
  done = process(lumina, tmp_path / "weights")
  assert done.returncode == 0, done.stderr
  assert "WARNING" not in done.stderr
  last = done.stdout.splitlines()[-1]
  count = sum(x.size for x in jax.tree.leaves(random_params(NEXT)))
  assert last.startswith(f"{count / 1e6:.1f} M parameters, float32, ")
  assert f"in {tmp_path / 'weights'} (peak memory 0." in last
  assert_same(our_params(tmp_path / "weights"), random_params(NEXT))


@pytest.mark.e2e
def test_mistakes_print_one_message(lumina, tmp_path):
  (tmp_path / "mine").write_text("")
  for words, message in (
    ((lumina, tmp_path / "mine"), f"{tmp_path / 'mine'} exists; name another"),
    (("a", "b", "--overwrite"), "Unknown command line flag 'overwrite'"),
  ):
    done = fork("convert", *words)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
  assert not (tmp_path / "mine").read_text()


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ((), "expected SOURCE DESTINATION, got nothing; for example: lumina conv"),
    (("nowhere", "out"), "nowhere does not exist; expected a .safetensors"),
    (("one",), r"expected SOURCE DESTINATION, got \['one'\]"),
    (("a", "b", "--layout=keras"), "--layout=keras: value should be one of"),
    (("a", "b", "--dtype=int8"), "--dtype=int8: value should be one of"),
    (("a", "b", "--model_arg=n_heads"), "write --model_arg=n_heads=32"),
    (("a", "b", "--model_arg="), "--model_arg=: write --model_arg=n_heads"),
    (
      ("a", "b.pth", "--layout=diffusers"),
      "--layout=diffusers writes a folder",
    ),
    (("a", "b", "--format=pth"), "--format=pth needs --layout=lumina"),
    (
      ("a", "b", "--format=pth", "--layout=diffusers"),
      "--format=pth needs --layout=lumina",
    ),
  ],
)
def test_mistakes(command, tmp_path, monkeypatch, words, message):
  monkeypatch.chdir(tmp_path)
  with pytest.raises((ValueError, OSError, flags.Error), match=message):
    command(*words)
  assert not list(tmp_path.iterdir())


def test_from_pytorch_to_ours_in_half_precision(
  command, lumina, tmp_path, capsys
):
  command(lumina, tmp_path / "weights", "--dtype=bfloat16")
  expected = jax.tree.map(
    lambda x: x.astype(ml_dtypes.bfloat16), random_params(NEXT)
  )
  assert_same(our_params(tmp_path / "weights"), expected)
  assert " bfloat16, in " in capsys.readouterr().out


def test_from_file_to_file(command, tmp_path, capsys):
  params = random_params(NEXT)
  save_pytorch(params, NEXT, tmp_path / "old.pth")
  command(tmp_path / "old.pth", tmp_path / "new.safetensors")
  assert_same(load_pytorch(tmp_path / "new.safetensors")[1], params)
  # A lone file does not say whether it is averaged.
  assert " M parameters, float32" in capsys.readouterr().out


def test_from_ours_to_both_of_pytorch_and_back(command, lumina, tmp_path):
  params = random_params(NEXT)
  command(lumina, tmp_path / "ours")
  for name, file, *words in (
    ("a", "consolidated.00-of-01.pth", "--layout=lumina", "--format=pth"),
    ("b", "consolidated.00-of-01.safetensors", "--layout=lumina"),
    ("c", "diffusion_pytorch_model.safetensors", "--layout=diffusers"),
  ):
    command(tmp_path / "ours", tmp_path / name, *words)
    assert (tmp_path / name / file).exists()
    assert_same(load_pytorch(tmp_path / name)[1], params)


def test_ema_or_raw_is_printed_if_files_say_so(
  command, lumina, tmp_path, capsys
):
  one = (lumina / "consolidated.00-of-01.safetensors").read_bytes()
  for which, ema in (("EMA", "_ema"), ("raw", "")):
    folder = tmp_path / which
    folder.mkdir()
    (folder / f"consolidated{ema}.00-of-01.safetensors").write_bytes(one)
    command(folder, tmp_path / f"{which}_out")
    assert f" M {which} parameters" in capsys.readouterr().out
  # Where there is a choice between two names of one file there is none.
  for flag in ("--ema", "--noema"):
    with pytest.raises(FileNotFoundError, match="does not say whether"):
      command(lumina, tmp_path / "out", flag)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("flag", "which"), [((), "EMA"), (("--noema",), "raw")]
)
def test_from_a_run_to_pytorch(command, run, tmp_path, capsys, flag, which):
  folder, cfg, raw, averaged = run
  command(folder, tmp_path / "out", "--layout=diffusers", *flag)
  found, params = load_pytorch(tmp_path / "out")
  assert found == dataclasses.replace(cfg, dtype="float32")
  assert_same(params, raw if flag else averaged)
  assert f" M {which} parameters" in capsys.readouterr().out


def test_a_run_without_checkpoints(command, run, tmp_path):
  (tmp_path / "checkpoints").mkdir()
  run_config.save(run_config.load(run[0]), tmp_path)
  with pytest.raises(FileNotFoundError, match="has no checkpoint yet; train"):
    command(tmp_path, tmp_path / "out", "--layout=lumina")


def test_a_run_whose_config_is_of_another_network(command, run, tmp_path):
  (tmp_path / "checkpoints").symlink_to(run[0] / "checkpoints")
  run_config.save(small_config(model__depth=3), tmp_path)
  with pytest.raises(ValueError, match=r"10/ema: the tensors do not fit"):
    command(tmp_path, tmp_path / "out", "--layout=lumina")


def test_from_an_export_to_pytorch(command, run, tmp_path):
  LuminaPipeline.from_workdir(run[0]).save_pretrained(tmp_path / "export")
  command(tmp_path / "export", tmp_path / "out", "--layout=lumina")
  expected = jax.tree.map(
    lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), run[3]
  )
  assert_same(load_pytorch(tmp_path / "out")[1], expected)


@pytest.mark.parametrize("harm", ["config", "weights", "foreign", "network"])
def test_our_own_folders_when_they_are_broken(command, tmp_path, harm, lumina):
  folder, message = tmp_path / "mine", "cannot be read"
  if harm == "network":
    command(lumina, folder)
    (folder / "network.json").write_text("{")
    file = "network.json"
  else:
    folder.mkdir()
    text = {"config": "{", "foreign": '{"model_type": "bert"}'}
    section = {"medium": "image", "model": schema.to_dict(NEXT)}
    values = text.get(harm) or json.dumps(section)
    (folder / "config.json").write_text(values)
    (folder / "model.safetensors").write_text("")
    file = "model.safetensors" if harm == "weights" else "config.json"
    message = {
      "foreign": "describes no network of ours",
      "weights": "is cut short",
    }.get(harm, message)
  with pytest.raises(ValueError, match=message) as error:
    command(folder, tmp_path / "out", "--layout=lumina")
  assert str(folder / file) in str(error.value)


def test_an_export_that_lacks_a_tensor(command, tmp_path):
  flat = traverse_util.flatten_dict({"backbone": random_params(NEXT)}, sep=".")
  del flat["backbone.final.bias"]
  save_file(flat, tmp_path / "model.safetensors")
  section = json.dumps({"medium": "image", "model": schema.to_dict(NEXT)})
  (tmp_path / "config.json").write_text(section)
  with pytest.raises(ValueError, match=r"1 missing:\s+final/bias: \(16,\)"):
    command(tmp_path, tmp_path / "out", "--layout=lumina")


def test_ours_asks_what_to_become(command, lumina, tmp_path):
  command(lumina, tmp_path / "ours")
  with pytest.raises(ValueError, match="--layout=lumina or --layout=diffusers"):
    command(tmp_path / "ours", tmp_path / "out")
  with pytest.raises(ValueError, match="leave model_args out"):
    command(
      tmp_path / "ours",
      tmp_path / "out",
      "--layout=lumina",
      "--model_arg=n_heads=4",
    )
  with pytest.raises(FileNotFoundError, match="leave --ema and --noema out"):
    command(tmp_path / "ours", tmp_path / "out", "--layout=lumina", "--noema")
  assert [p.name for p in tmp_path.iterdir()] == ["ours"]


def test_arguments_of_a_network_on_the_command_line(command, tmp_path):
  cfg = dataclasses.replace(
    FAMILIES["moe_token"], norm_eps=1e-6, active_experts=1
  )
  params = random_params(cfg)
  save_pytorch(params, cfg, tmp_path / "a.safetensors")
  tensors = load_file(tmp_path / "a.safetensors")
  save_file(tensors, tmp_path / "a.safetensors")  # Says nothing any more.
  with pytest.raises(ValueError, match="--model_arg=n_heads=32"):
    command(tmp_path / "a.safetensors", tmp_path / "out")
  words = ("n_heads=4", "norm_eps=1e-6", "num_experts_per_tok=1")
  command(
    tmp_path / "a.safetensors",
    tmp_path / "out",
    "--layout=lumina",
    "--model_arg=model=Next-DiT-MoE/space",
    *(f"--model_arg={word}" for word in words),
  )
  found, back = load_pytorch(tmp_path / "out")
  assert found == cfg
  assert_same(back, params)


def test_words_become_values():
  words = ["n_heads=32", "norm_eps=1e-6", "qk_norm=true", "ffn=null", "lm=a=b"]
  assert convert.parse_model_args([*words, "model=NextDiT_2B_patch2"]) == {
    "n_heads": 32,
    "norm_eps": 1e-6,
    "qk_norm": True,
    "ffn": None,
    "lm": "a=b",
    "model": "NextDiT_2B_patch2",
  }


def test_force_replaces(command, lumina, tmp_path):
  other = random_params(NEXT, seed=1)
  save_pytorch(other, NEXT, tmp_path / "out")
  with pytest.raises(FileExistsError, match="--force"):
    command(lumina, tmp_path / "out")
  assert_same(load_pytorch(tmp_path / "out")[1], other)
  command(lumina, tmp_path / "out", "--force")
  assert_same(our_params(tmp_path / "out"), random_params(NEXT))
  names = {path.name for path in (tmp_path / "out").iterdir()}
  assert names == {"network.json", "params"}


def test_force_does_not_replace_a_run(command, lumina, run, tmp_path):
  shutil.copytree(run[0], tmp_path / "mine")
  before = sorted((tmp_path / "mine").rglob("*"))
  with pytest.raises(FileExistsError, match=r"weights \(checkpoints"):
    command(lumina, tmp_path / "mine", "--force")
  assert sorted((tmp_path / "mine").rglob("*")) == before


@pytest.mark.parametrize("layout", ["lumina", "lumina_jax"])
def test_memory_holds_little_more_than_one_parameter(command, tmp_path, layout):
  both = FAMILIES["moe_both"]
  cfg = dataclasses.replace(both, ffn_multiple=512, experts=8)
  params = random_params(cfg)
  save_pytorch(params, cfg, tmp_path / "a")
  largest = max(x.nbytes for x in jax.tree.leaves(params))
  assert sum(x.nbytes for x in jax.tree.leaves(params)) > 6 * largest
  tracemalloc.start()
  command(tmp_path / "a", tmp_path / "b", f"--layout={layout}", "--force")
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2 * largest


@pytest.mark.long
def test_what_training_left_is_what_is_converted(tmp_path):
  workdir = tmp_path / "run"
  done = subprocess.run(
    [
      *(sys.executable, "-m", "lumina_jax.train"),
      *("--config=configs/digits.py", f"--workdir={workdir}"),
      *small_flags(training__steps=4),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = {}
  for flag in ("--ema", "--noema"):
    out = tmp_path / flag
    done = fork("convert", workdir, out, "--layout=lumina", flag)
    assert done.returncode == 0, done.stderr
    found[flag] = load_pytorch(out)[1]
  step = (workdir / "checkpoints" / "4").absolute()
  raw = ocp.PyTreeCheckpointer().restore(step / "train")["params"]
  averaged = LuminaPipeline.from_workdir(workdir).params
  assert_same(found["--noema"], jax.tree.map(np.asarray, raw["backbone"]))
  assert_same(found["--ema"], jax.tree.map(np.asarray, averaged["backbone"]))
  differ = found["--ema"]["patch_embed"]["kernel"]
  assert np.any(differ != found["--noema"]["patch_embed"]["kernel"])
