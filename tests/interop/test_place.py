"""Files that cannot be read, and destinations: nothing lost, nothing half."""

import errno
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from flax import traverse_util
from interop.families import (
  NEXT,
  assert_same,
  random_params,
  shapes_once,  # noqa: F401
)

from lumina_jax.convert import convert
from lumina_jax.interop import (
  load_pytorch,
  ours,
  place,
  save_pytorch,
  target,
)
from lumina_jax.interop.layout import Layout
from lumina_jax.interop.weights import InMemory, gather

# Where to, and in which layout.
PLACES = {
  "theirs": "lumina",
  "for_diffusers": "diffusers",
  "ours": "lumina_jax",
  "lone.safetensors": "lumina",
  "lone.pth": "lumina",
}
# Dies as a machine does, after the tenth parameter.
KILLED = """
import os, pathlib, signal, sys
from lumina_jax import convert
def show(bar, done):
  if done == 10:
    os.kill(os.getpid(), signal.SIGKILL)
convert.Progress.show = show
source, destination, layout = sys.argv[1:]
convert.convert(pathlib.Path(source), pathlib.Path(destination), layout)
"""


@pytest.fixture(scope="module")
def params():
  return random_params(NEXT)


@pytest.fixture(scope="module")
def source(tmp_path_factory, params):
  """A lone file to convert."""
  path = tmp_path_factory.mktemp("source") / "lone.safetensors"
  save_pytorch(params, NEXT, path)
  return path


def read(path: pathlib.Path):
  if ours.is_ours(path):
    return gather(ours.open_ours(path, None))
  return load_pytorch(path)[1]


def names(folder: pathlib.Path) -> set[str]:
  return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
  ("name", "size", "message"),
  [
    ("lone.safetensors", 0.5, "cut short or no safetensors file"),
    ("lone.safetensors", 0.0, "cut short or no safetensors file"),
    ("lone.pth", 0.5, "cut short"),
    ("lone.pth", 0.0, "is empty"),
  ],
)
def test_a_file_that_is_cut_short(tmp_path, source, name, size, message):
  convert(source, tmp_path / name, "lumina")
  data = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(data[: int(size * len(data))])
  with pytest.raises(ValueError, match=message) as error:
    load_pytorch(tmp_path / name)
  assert str(tmp_path / name) in str(error.value)


def test_a_file_of_another_kind(tmp_path):
  for name in ("a.safetensors", "a.pth", "a.bin"):
    (tmp_path / name).write_text("No weights, but a poem.\n" * 9)
    with pytest.raises(ValueError, match=f"{name} is cut short or no"):
      load_pytorch(tmp_path / name)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
  with pytest.raises(FileNotFoundError, match="There is: nothing") as error:
    load_pytorch(tmp_path)
  for name in ("00-of-01.safetensors or .pth", "diffusion_pytorch_model"):
    assert name in str(error.value)
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(FileNotFoundError, match=r"There is: notes\.txt"):
    load_pytorch(tmp_path)
  with pytest.raises(
    FileNotFoundError, match=r"nowhere does not exist; looked"
  ):
    load_pytorch(tmp_path / "nowhere")


def test_words_that_mean_nothing(tmp_path, params):
  out = tmp_path / "out"
  with pytest.raises(ValueError, match="'keras': use one of lumina, diffusers"):
    save_pytorch(params, NEXT, out, "keras")
  with pytest.raises(ValueError, match="'int8': use one of float32, bfloat16"):
    save_pytorch(params, NEXT, out, dtype="int8")
  with pytest.raises(ValueError, match=r"a\.pth: diffusers loads folders"):
    save_pytorch(params, NEXT, tmp_path / "a.pth", "diffusers")
  with pytest.raises(
    ValueError, match="model_args: vae is refused: it holds a object"
  ):
    save_pytorch(params, NEXT, out, model_args={"vae": object()})
  assert not names(tmp_path)


def test_parameters_of_another_network(tmp_path, params):
  flat = traverse_util.flatten_dict(params)
  del flat["final", "bias"]
  flat["head", "kernel"] = np.zeros((2, 2))
  flat["pad",] = np.zeros(5)
  wrong = traverse_util.unflatten_dict(flat)
  with pytest.raises(ValueError, match="final/bias") as error:
    save_pytorch(wrong, NEXT, tmp_path / "out")
  assert "head/kernel: (2, 2)" in str(error.value)
  assert "pad: expected (32,), found (5,)" in str(error.value)
  assert not names(tmp_path)


@pytest.mark.parametrize("name", PLACES)
def test_a_destination_that_exists_is_kept_unless_told(tmp_path, source, name):
  path = tmp_path / name
  if path.suffix:
    path.write_text("mine")
  else:
    (path / "deep").mkdir(parents=True)
  with pytest.raises(FileExistsError, match=rf"{name} exists.*--force"):
    convert(source, path, PLACES[name])
  assert path.read_text() == "mine" if path.suffix else names(path) == {"deep"}
  convert(source, path, PLACES[name], overwrite=True)
  assert_same(read(path), random_params(NEXT))
  assert names(tmp_path) == {name}
  assert path.suffix or "deep" not in names(path)


@pytest.mark.parametrize("name", PLACES)
def test_a_full_disk_is_noticed_before_anything_is_written(
  tmp_path, source, name, monkeypatch
):
  needed = 4 * sum(
    x.size for x in traverse_util.flatten_dict(random_params(NEXT)).values()
  )
  free = SimpleNamespace(free=needed - 1)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
  with pytest.raises(OSError, match=r"needs 0\.00 GB, its disk has 0\.00 GB"):
    convert(source, tmp_path / name, PLACES[name])
  assert not names(tmp_path)
  # Half as much in half precision.
  convert(source, tmp_path / name, PLACES[name], dtype="bfloat16")


@pytest.fixture
def breaks(monkeypatch):
  """The disk fills up at the twentieth tensor."""
  write, left = Layout.write, [20]

  def failing(self, path, array):
    for item in write(self, path, array):
      left[0] -= 1
      if not left[0]:
        raise OSError(errno.ENOSPC, "No space left on device")
      yield item

  monkeypatch.setattr(Layout, "write", failing)


@pytest.fixture
def breaks_for_ours(monkeypatch):
  """The source breaks at the twentieth tensor."""
  read, left = Layout.read, [20]

  def failing(self, *args):
    left[0] -= 1
    if not left[0]:
      raise OSError(errno.EIO, "Input/output error")
    return read(self, *args)

  monkeypatch.setattr(Layout, "read", failing)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("there", [False, True])
def test_an_error_while_writing_leaves_nothing_behind(
  tmp_path, source, params, name, there, request
):
  path = tmp_path / name
  if there:
    convert(source, path, PLACES[name])
  fixture = "breaks_for_ours" if name == "ours" else "breaks"
  request.getfixturevalue(fixture)
  with pytest.raises(OSError, match=r"No space left|Input/output error"):
    convert(source, path, PLACES[name], overwrite=True)
  assert names(tmp_path) == ({name} if there else set())
  request.getfixturevalue("monkeypatch").undo()
  if there:
    assert_same(read(path), params)


@pytest.mark.parametrize(
  "name",
  [
    "theirs",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in PLACES
      if name != "theirs"
    ),
  ],
)
def test_a_killed_conversion_leaves_no_destination(
  tmp_path, source, params, name
):
  words = [str(source), str(tmp_path / name), PLACES[name]]
  done = subprocess.run(
    [sys.executable, "-c", KILLED, *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  # It was under way, and under another name.
  assert len(names(tmp_path)) == 1 and name not in names(tmp_path)
  convert(source, tmp_path / name, PLACES[name])
  assert_same(read(tmp_path / name), params)
  assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", ["theirs", "lone.pth"])
def test_one_killed_between_two_renames_has_lost_nothing(
  tmp_path, source, params, name
):
  path = tmp_path / name
  convert(source, path, "lumina")
  old = path.with_name(f".{path.stem}.old{path.suffix}")
  path.rename(old)
  with pytest.raises(FileExistsError):
    convert(source, path, "lumina")
  assert_same(read(path), params)
  assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", ["theirs", "lone.pth"])
def test_one_killed_before_it_removed_the_old(tmp_path, source, params, name):
  path = tmp_path / name
  convert(source, path, "lumina", dtype="bfloat16")
  path.rename(path.with_name(f".{path.stem}.old{path.suffix}"))
  other = random_params(NEXT, seed=1)
  save_pytorch(other, NEXT, path.with_name("new" + path.suffix))
  path.with_name("new" + path.suffix).rename(path)
  with pytest.raises(FileExistsError):
    convert(source, path, "lumina")
  assert_same(read(path), other)
  convert(source, path, "lumina", overwrite=True)
  assert_same(read(path), params)
  assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", PLACES)
def test_weights_can_be_converted_in_place(tmp_path, source, name):
  path, layout = tmp_path / name, PLACES[name]
  convert(source, path, layout)
  before = read(path)
  convert(path, path, layout, dtype="bfloat16", overwrite=True)
  halves = read(path)
  assert halves["pad"].tolist() != before["pad"].tolist()
  np.testing.assert_allclose(
    halves["pad"].astype(np.float32), before["pad"], rtol=2**-8
  )


def test_a_link_is_replaced_and_what_it_points_at_is_kept(tmp_path, source):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "deep").write_text("")
  (tmp_path / "link").symlink_to("mine")
  convert(source, tmp_path / "link", "lumina", overwrite=True)
  assert_same(read(tmp_path / "link"), random_params(NEXT))
  assert names(tmp_path) == {"mine", "link"}
  assert names(tmp_path / "mine") == {"deep"}


def test_a_rename_that_fails_brings_the_old_one_back(tmp_path):
  path = tmp_path / "weights"
  path.mkdir()
  (path / "mine").write_text("")
  with (
    pytest.raises(FileNotFoundError),
    place.new(path, 0, overwrite=True) as new,
  ):
    assert not new.exists()  # And never is: there is nothing to rename.
  assert names(path) == {"mine"} and names(tmp_path) == {"weights"}


def test_an_interrupt_leaves_nothing_behind(tmp_path, params):
  def interrupted(done, of):
    raise KeyboardInterrupt

  weights = InMemory(NEXT, params)
  with pytest.raises(KeyboardInterrupt):
    target.write(weights, tmp_path / "out", "lumina", progress=interrupted)
  assert not names(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path, params):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
    save_pytorch(params, NEXT, tmp_path / "file" / "out")
  assert os.listdir(tmp_path) == ["file"]
