"""Conversions replace weights on request, whole or not at all."""

import errno
import itertools
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

from lumina_jax.interop import (
  load_pytorch,
  load_weights,
  pytorch_writer,
  save_pytorch,
)
from lumina_jax.interop.convert import convert
from lumina_jax.interop.layout import Layout
from lumina_jax.interop.weights import in_memory

# Destination and layout, one for each way to write.
DESTINATIONS = {
  "original": "lumina",
  "for_diffusers": "diffusers",
  "ours": "lumina_jax",
  "lone.safetensors": "lumina",
  "lone.pth": "lumina",
}
# Kills itself after the tenth parameter.
KILLED = """
import os, pathlib, signal, sys
from lumina_jax.interop import convert
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


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
  """Other weights in every format, by destination."""
  folder = tmp_path_factory.mktemp("other")
  save_pytorch(random_params(NEXT, seed=1), NEXT, folder / "a.safetensors")
  for name, layout in DESTINATIONS.items():
    convert(folder / "a.safetensors", folder / name, layout)
  return folder


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
  (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def names(folder: pathlib.Path) -> set[str]:
  return {path.name for path in folder.iterdir()}


def contents(folder: pathlib.Path) -> dict[str, bytes | None]:
  """All files of a folder, and their content."""
  return {
    str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
    for path in folder.rglob("*")
  }


@pytest.mark.parametrize(
  ("name", "before"),
  [*itertools.pairwise([*DESTINATIONS, "original"])],
)
def test_weights_are_replaced_only_on_request(
  tmp_path, source, params, other_weights, name, before
):
  path, layout = tmp_path / name, DESTINATIONS[name]
  copy(other_weights / before, path)
  kept = contents(tmp_path)
  with pytest.raises(FileExistsError, match=rf"{name} exists.*--force"):
    convert(source, path, layout)
  assert contents(tmp_path) == kept
  convert(source, path, layout, overwrite=True)
  assert_same(load_weights(path)[1], params)
  assert names(tmp_path) == {name}
  if path.is_dir():  # No old file is left in it.
    assert names(path) == names(other_weights / name)
  convert(path, path, layout, dtype="bfloat16", overwrite=True)
  halves = load_weights(path)[1]["pad"]
  assert halves.tolist() != params["pad"].tolist()
  np.testing.assert_allclose(halves, params["pad"], rtol=2**-8)


def test_the_parent_of_the_source_is_never_replaced(tmp_path, source):
  folder = tmp_path / "folder"
  folder.mkdir()
  shutil.copy(source, folder)
  kept = contents(tmp_path)
  with pytest.raises(FileExistsError, match=r"more than weights \(lone\.safe"):
    convert(folder / source.name, folder, "lumina_jax", overwrite=True)
  assert contents(tmp_path) == kept


@pytest.mark.parametrize("name", ["original", "for_diffusers", "ours"])
def test_a_full_disk_is_noticed_before_writing(
  tmp_path, source, params, name, monkeypatch
):
  needed = 4 * sum(x.size for x in traverse_util.flatten_dict(params).values())
  free = SimpleNamespace(free=needed - 1)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
  with pytest.raises(OSError, match=r"needs 0\.00 GB, its disk has 0\.00 GB"):
    convert(source, tmp_path / name, DESTINATIONS[name])
  assert not names(tmp_path)
  # bfloat16 needs half.
  convert(source, tmp_path / name, DESTINATIONS[name], dtype="bfloat16")


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", DESTINATIONS)
def test_an_error_while_writing_leaves_nothing_behind(
  tmp_path, source, other_weights, name, exists, monkeypatch
):
  path = tmp_path / name
  if exists:
    copy(other_weights / name, path)
  kept, left = contents(tmp_path), [20]

  def fail_later():
    left[0] -= 1
    if not left[0]:
      raise OSError(errno.ENOSPC, "No space left on device")

  def failing_write(self, path, array, write=Layout.write):
    for item in write(self, path, array):
      fail_later()
      yield item

  def failing_read(self, *args, read=Layout.read):
    fail_later()
    return read(self, *args)

  if name == "ours":
    monkeypatch.setattr(Layout, "read", failing_read)
  else:
    monkeypatch.setattr(Layout, "write", failing_write)
  with pytest.raises(OSError, match="No space left"):
    convert(source, path, DESTINATIONS[name], overwrite=True)
  assert contents(tmp_path) == kept


def test_an_interrupt_leaves_nothing_behind(tmp_path, params):
  def interrupted(done):
    raise KeyboardInterrupt

  weights = in_memory(NEXT, params, "image")
  with pytest.raises(KeyboardInterrupt):
    pytorch_writer.write(
      weights, tmp_path / "out", "lumina", on_progress=interrupted
    )
  assert not names(tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["original", "lone.pth", "ours"])
def test_a_killed_conversion_leaves_no_destination(
  tmp_path, source, params, name
):
  args = [str(source), str(tmp_path / name), DESTINATIONS[name]]
  done = subprocess.run(
    [sys.executable, "-c", KILLED, *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  # Only the temporary file is there.
  assert len(names(tmp_path)) == 1 and name not in names(tmp_path)
  convert(source, tmp_path / name, DESTINATIONS[name])
  assert_same(load_weights(tmp_path / name)[1], params)
  assert names(tmp_path) == {name}


def test_the_suffix_that_was_passed_decides_not_that_of_the_link(
  tmp_path, params
):
  (tmp_path / "lone.pth").symlink_to("mine.safetensors")
  save_pytorch(params, NEXT, tmp_path / "lone.pth")
  assert (tmp_path / "mine.safetensors").read_bytes().startswith(b"PK")
  assert_same(load_pytorch(tmp_path / "lone.pth")[1], params)


def test_the_home_folder_is_expanded(tmp_path, params, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  save_pytorch(params, NEXT, "~/deep/lone.safetensors")
  assert_same(load_pytorch("~/deep/lone.safetensors")[1], params)
  assert names(tmp_path) == {"home"}


def test_a_path_that_cannot_be_written_is_named(tmp_path, params):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))):
    save_pytorch(params, NEXT, tmp_path / "file" / "out")
  assert os.listdir(tmp_path) == ["file"]
