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
from flax import traverse_util
from support.configs import ROOT
from support.families import (
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


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
@pytest.mark.parametrize("layout", ["lumina", "diffusers", "lumina_jax"])
def test_names_of_files_that_we_do_not_write(tmp_path, source, suffix, layout):
  out = tmp_path / f"out{suffix}"
  message = (
    rf"out{suffix} looks like a file: files end in \.safetensors or \.pt"
  )
  with pytest.raises(ValueError, match=message):
    convert(source, out, layout)
  assert not names(tmp_path)


def test_parameters_of_a_whole_pipeline(tmp_path, params):
  whole = {"backbone": params, "null_text": {"x": np.zeros(3)}}
  with pytest.raises(
    ValueError, match=r"whole pipeline; pass params\['backbone"
  ):
    save_pytorch(whole, NEXT, tmp_path / "out")
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
@pytest.mark.parametrize("before", PLACES)
def test_a_destination_that_exists_is_kept_unless_told(
  tmp_path, source, name, before, elsewhere
):
  path = tmp_path / name
  shutil.copytree(elsewhere, tmp_path / "all")
  (tmp_path / "all" / before).rename(path)
  shutil.rmtree(tmp_path / "all")
  kept = contents(tmp_path)
  with pytest.raises(FileExistsError, match=rf"{name} exists.*--force"):
    convert(source, path, PLACES[name])
  assert contents(tmp_path) == kept
  convert(source, path, PLACES[name], overwrite=True)
  assert_same(read(path), random_params(NEXT))
  assert names(tmp_path) == {name}
  convert(source, tmp_path / f"fresh{path.suffix}", PLACES[name])
  if not path.suffix:  # Nothing of what was there is left among it.
    assert names(path) == names(tmp_path / "fresh")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, source):
  """Other weights, in every format."""
  folder = tmp_path_factory.mktemp("elsewhere")
  save_pytorch(random_params(NEXT, seed=1), NEXT, folder / "a.safetensors")
  for name, layout in PLACES.items():
    convert(folder / "a.safetensors", folder / name, layout)
  return folder


def contents(folder: pathlib.Path) -> dict[str, bytes | None]:
  """All that is in a folder, by name."""
  return {
    str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
    for path in folder.rglob("*")
  }


def a_workdir(path, source):
  (path / "checkpoints" / "4").mkdir(parents=True)
  (path / "config.json").write_text("{}")
  return "checkpoints", source


def with_a_stranger(path, source):
  convert(source, path, "lumina")
  (path / "notes.txt").write_text("mine")
  return "notes.txt", source


def a_parent_of_the_source(path, source):
  convert(source, path / "weights", "lumina")
  return "weights", path / "weights"


def with_the_source(path, source):
  path.mkdir()
  return "lone.safetensors", shutil.copy(source, path)


def an_export(path, source):
  path.mkdir()
  (path / "config.json").write_text("{}")
  (path / "model.safetensors").write_text("")
  return "model.safetensors", source


@pytest.mark.parametrize("name", [n for n in PLACES if "." not in n])
@pytest.mark.parametrize(
  "make",
  [
    a_workdir,
    with_a_stranger,
    a_parent_of_the_source,
    with_the_source,
    an_export,
  ],
)
def test_a_folder_that_holds_more_than_weights_is_kept_even_if_told(
  tmp_path, source, name, make
):
  stranger, source = make(tmp_path / name, source)
  kept = contents(tmp_path)
  message = rf"holds more than weights \({re.escape(stranger)}\)"
  with pytest.raises(FileExistsError, match=message) as error:
    convert(source, tmp_path / name, PLACES[name], overwrite=True)
  assert str(tmp_path / name) in str(error.value)
  assert contents(tmp_path) == kept


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


@pytest.fixture(scope="module")
def dead() -> int:
  """The id of a process that has ended."""
  with subprocess.Popen([sys.executable, "-c", ""]) as process:
    process.wait()
  return process.pid


def beside(path: pathlib.Path, process: int, kind: str) -> pathlib.Path:
  """What a process calls a destination before it is done."""
  name = f".{path.stem}.lumina_jax-{process}-{kind}{path.suffix}"
  return path.with_name(name)


# The last ones look like temporary names, and like patterns.
NAMED = ["theirs", "lone.pth", "v1.5", "lumina_jax-new", "a[1]*.safetensors"]


@pytest.mark.parametrize("name", NAMED)
def test_one_killed_between_two_renames_has_lost_nothing(
  tmp_path, source, params, name, dead
):
  path = tmp_path / name
  convert(source, path, "lumina")
  path.rename(beside(path, dead, "old"))
  with pytest.raises(FileExistsError):
    convert(source, path, "lumina")
  assert_same(read(path), params)
  assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", NAMED)
def test_one_killed_before_it_removed_the_old(
  tmp_path, source, params, name, dead
):
  path = tmp_path / name
  convert(source, path, "lumina", dtype="bfloat16")
  path.rename(beside(path, dead, "old"))
  other = random_params(NEXT, seed=1)
  save_pytorch(other, NEXT, path.with_name("new" + path.suffix))
  path.with_name("new" + path.suffix).rename(path)
  with pytest.raises(FileExistsError):
    convert(source, path, "lumina")
  assert_same(read(path), other)
  convert(source, path, "lumina", overwrite=True)
  assert_same(read(path), params)
  assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_dead_process_had_begun_is_removed(
  tmp_path, source, params, name, dead
):
  path = tmp_path / name
  if path.suffix in target.SINGLE_FILE:
    beside(path, dead, "new").write_text("half")
  else:
    beside(path, dead, "new").mkdir()
    (beside(path, dead, "new") / "consolidated.00-of-01.pth").write_text("half")
  convert(source, path, "lumina")
  assert_same(read(path), params)
  assert names(tmp_path) == {name}


@pytest.mark.parametrize("name", NAMED)
def test_what_others_have_under_way_is_left_alone(
  tmp_path, source, params, name, dead
):
  path = tmp_path / name
  with subprocess.Popen(["sleep", "60"]) as living:
    theirs = {
      beside(path, living.pid, "new"),
      beside(path, living.pid, "old"),
      # Of a dead process, but of another destination.
      beside(tmp_path / f"other{path.suffix}", dead, "new"),
      beside(tmp_path / f"{path.stem}.log", dead, "new"),
      tmp_path / f".{path.stem}.lumina_jax-mine-new{path.suffix}",
    }
    for other in theirs:
      other.write_text("theirs")
    try:
      convert(source, path, "lumina")
      convert(source, path, "lumina", overwrite=True)
      assert {other.read_text() for other in theirs} == {"theirs"}
    finally:
      living.kill()
  assert_same(read(path), params)
  assert names(tmp_path) == {name, *(other.name for other in theirs)}


def test_what_appears_meanwhile_is_not_overwritten(tmp_path):
  path = tmp_path / "lone.pth"
  with (
    pytest.raises(FileExistsError, match=r"lone\.pth exists"),
    place.new(path, 0, overwrite=False) as new,
  ):
    assert new == beside(path, os.getpid(), "new")
    new.write_text("mine")
    path.write_text("theirs")
  assert contents(tmp_path) == {"lone.pth": b"theirs"}
  with place.new(path, 0, overwrite=True) as new:
    new.write_text("mine")
    path.write_text("still theirs")
  assert contents(tmp_path) == {"lone.pth": b"mine"}
  path = tmp_path / "folder"
  with (
    pytest.raises(FileExistsError, match=r"more than weights \(notes\)"),
    place.new(path, 0, overwrite=True) as new,
  ):
    new.mkdir()
    path.mkdir()
    (path / "notes").write_text("theirs")
  assert names(tmp_path) == {"lone.pth", "folder"}
  assert contents(path) == {"notes": b"theirs"}


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


@pytest.mark.parametrize("to", ["mine", "mine.pth", "mine.safetensors"])
@pytest.mark.parametrize("name", PLACES)
def test_a_link_stays_one_and_what_it_points_at_is_replaced(
  tmp_path, source, params, name, to, elsewhere
):
  link, disk = tmp_path / name, tmp_path / "disk"
  disk.mkdir()
  link.symlink_to(f"disk/{to}")
  # What it points at is made, then kept, then replaced.
  convert(elsewhere / "a.safetensors", link, PLACES[name])
  assert_same(read(link), random_params(NEXT, seed=1))
  with pytest.raises(FileExistsError, match="exists"):
    convert(source, link, PLACES[name])
  convert(source, link, PLACES[name], overwrite=True)
  assert_same(read(link), params)
  assert link.is_symlink() and str(link.readlink()) == f"disk/{to}"
  assert names(tmp_path) == {name, "disk"} and names(disk) == {to}
  assert (disk / to).is_file() == bool(link.suffix)


def test_the_home_folder_is_found(tmp_path, params, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  save_pytorch(params, NEXT, "~/deep/lone.safetensors")
  assert_same(load_pytorch("~/deep/lone.safetensors")[1], params)
  assert names(tmp_path) == {"home"}


def test_a_rename_that_fails_brings_the_old_one_back(tmp_path):
  path = tmp_path / "weights"
  path.mkdir()
  (path / "network.json").write_text("mine")
  with (
    pytest.raises(FileNotFoundError),
    place.new(path, 0, overwrite=True) as new,
  ):
    assert not new.exists()  # And never is: there is nothing to rename.
  assert contents(path) == {"network.json": b"mine"}
  assert names(tmp_path) == {"weights"}


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
