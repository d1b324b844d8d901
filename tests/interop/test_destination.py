"""Destinations of weights: nothing is lost and nothing is half written."""

import os
import pathlib
import re
import subprocess

import pytest

from lumina_jax.interop import (
  destination,
)


def names(folder: pathlib.Path) -> set[str]:
  return {path.name for path in folder.iterdir()}


def contents(folder: pathlib.Path) -> dict[str, bytes | None]:
  """All files of a folder, and their content."""
  return {
    str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
    for path in folder.rglob("*")
  }


def write(path: pathlib.Path, text: str, **kwargs) -> None:
  """Writes a file, or a folder of one file of weights if it has no suffix."""
  with destination.staged(path, 0, **kwargs) as new:
    if path.suffix in destination.SINGLE_FILE:
      new.write_text(text)
    else:
      new.mkdir()
      (new / "network.json").write_text(text)


def text_of(path: pathlib.Path) -> str:
  return (path / "network.json" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("name", ["folder", "file.pth"])
@pytest.mark.parametrize("before", ["folder", "file.pth"])
def test_files_and_folders_replace_each_other(tmp_path, name, before):
  write(tmp_path / before, "old", overwrite=False)
  (tmp_path / before).rename(tmp_path / name)
  with pytest.raises(FileExistsError, match=f"{name} exists"):
    write(tmp_path / name, "new", overwrite=False)
  assert text_of(tmp_path / name) == "old"
  write(tmp_path / name, "new", overwrite=True)
  assert text_of(tmp_path / name) == "new"
  assert names(tmp_path) == {name}


@pytest.mark.parametrize(
  ("files", "other"),
  [
    (("config.json", "checkpoints/4"), "checkpoints"),  # A workdir.
    (("config.json", "model.safetensors"), "model.safetensors"),  # An export.
    (("network.json", "notes.txt"), "notes.txt"),
    (("consolidated.00-of-01.pth", "lone.safetensors"), "lone.safetensors"),
  ],
)
def test_a_folder_with_other_files_is_never_replaced(tmp_path, files, other):
  folder = tmp_path / "folder"
  for file in files:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(file)
  kept = contents(tmp_path)
  message = rf"folder holds more than weights \({re.escape(other)}\)"
  with pytest.raises(FileExistsError, match=message):
    write(folder, "new", overwrite=True)
  assert contents(tmp_path) == kept


def test_a_rename_that_fails_restores_the_old_folder(tmp_path):
  write(tmp_path / "weights", "old", overwrite=False)
  with (
    pytest.raises(FileNotFoundError),
    destination.staged(tmp_path / "weights", 0, overwrite=True) as new,
  ):
    assert not new.exists()  # Nothing is written: the rename fails.
  assert text_of(tmp_path / "weights") == "old"
  assert names(tmp_path) == {"weights"}


@pytest.fixture(scope="module")
def dead() -> int:
  """The id of a process that has ended."""
  with subprocess.Popen(["true"]) as process:
    process.wait()
  return process.pid


def temporary(path: pathlib.Path, process: int, kind: str) -> pathlib.Path:
  """The temporary name of a destination."""
  name = f".{path.stem}.lumina_jax-{process}-{kind}{path.suffix}"
  return path.with_name(name)


# The last ones look like temporary names and like patterns.
@pytest.mark.parametrize(
  "name", ["weights", "lone.pth", "v1.5", "lumina_jax-new", "a[1]*.safetensors"]
)
def test_what_killed_processes_left_is_cleaned_up(tmp_path, name, dead):
  path = tmp_path / name
  # Killed before the end.
  write(temporary(path, dead, "new"), "half", overwrite=False)
  write(path, "whole", overwrite=False)
  assert text_of(path) == "whole" and names(tmp_path) == {name}
  # Killed between two renames.
  path.rename(temporary(path, dead, "old"))
  with pytest.raises(FileExistsError):
    write(path, "new", overwrite=False)
  assert text_of(path) == "whole" and names(tmp_path) == {name}
  # Killed before the old one was removed.
  write(temporary(path, dead, "old"), "old", overwrite=False)
  with pytest.raises(FileExistsError):
    write(path, "new", overwrite=False)
  assert text_of(path) == "whole" and names(tmp_path) == {name}


@pytest.mark.parametrize("name", ["weights", "lone.pth"])
def test_files_of_other_processes_stay(tmp_path, name, dead):
  path = tmp_path / name
  others = {
    # Of a process that runs.
    temporary(path, os.getppid(), "new"),
    temporary(path, os.getppid(), "old"),
    # Of another destination.
    temporary(tmp_path / f"other{path.suffix}", dead, "new"),
    temporary(tmp_path / f"{path.stem}.log", dead, "new"),
    tmp_path / f".{path.stem}.lumina_jax-mine-new{path.suffix}",
  }
  for other in others:
    other.write_text("theirs")
  write(path, "first", overwrite=False)
  write(path, "second", overwrite=True)
  assert text_of(path) == "second"
  assert {other.read_text() for other in others} == {"theirs"}
  assert names(tmp_path) == {name, *(other.name for other in others)}


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
  path = tmp_path / "lone.pth"
  with (
    pytest.raises(FileExistsError, match=r"lone\.pth exists"),
    destination.staged(path, 0, overwrite=False) as new,
  ):
    assert new == temporary(path, os.getpid(), "new")
    new.write_text("mine")
    path.write_text("theirs")
  assert contents(tmp_path) == {"lone.pth": b"theirs"}
  with destination.staged(path, 0, overwrite=True) as new:
    new.write_text("mine")
    path.write_text("still theirs")
  assert contents(tmp_path) == {"lone.pth": b"mine"}
  path = tmp_path / "folder"
  with (
    pytest.raises(FileExistsError, match=r"more than weights \(notes\)"),
    destination.staged(path, 0, overwrite=True) as new,
  ):
    new.mkdir()
    path.mkdir()
    (path / "notes").write_text("theirs")
  assert names(tmp_path) == {"lone.pth", "folder"}
  assert contents(path) == {"notes": b"theirs"}


@pytest.mark.parametrize(
  ("name", "target"),
  [("folder", "mine.pth"), ("lone.pth", "mine"), ("lone.pth", "mine.pth")],
)
def test_links_stay_and_their_targets_are_replaced(tmp_path, name, target):
  link, disk = tmp_path / name, tmp_path / "disk"
  disk.mkdir()
  link.symlink_to(f"disk/{target}")
  for text in ("first", "second"):
    write(link, text, overwrite=text == "second")
    assert text_of(link) == text
    assert str(link.readlink()) == f"disk/{target}"
    assert names(tmp_path) == {name, "disk"} and names(disk) == {target}
    with pytest.raises(FileExistsError, match="exists"):
      write(link, "third", overwrite=False)
