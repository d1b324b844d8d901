"""A destination: nothing there is lost, and nothing is ever half written."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from lumina_jax.interop import licences

# What we put into folders, and so may replace.
OURS = re.compile(
  r"consolidated.*|model_args\.pth|diffusion_pytorch_model.*|config\.json|"
  r"network\.json|params"
)
# Folders of whole pipelines, which weights alone never replace, and what other
# programs put into those of their parts.
PIPELINE = re.compile(
  r"config\.json|model\.safetensors|model_index\.json|transformer|vae|"
  r"text_encoder|tokenizer|scheduler"
)
PARTS = re.compile(
  r"(generation_)?config\.json|(diffusion_pytorch_)?model.*\.safetensors.*|"
  r"scheduler_config\.json|tokenizer.*|special_tokens_map\.json|"
  r"added_tokens\.json|vocab\.json|merges\.txt|chat_template\.jinja"
)


@contextlib.contextmanager
def new(
  path: pathlib.Path,
  nbytes: int,
  overwrite: bool,
  ours: re.Pattern = OURS,
) -> Iterator[pathlib.Path]:
  """A name beside `path` to write to; renamed to it at the end.

  On any error what was written is removed and what was there stays. Links are
  followed, so that they go on leading to what is written.

  Args:
    path: where the file or folder shall appear.
    nbytes: that will be written, about.
    overwrite: whether weights may be there.
    ours: names of what may be replaced. Licences and model cards may as well;
      they stay if none come.

  Raises:
    FileExistsError: if something is there and may not be overwritten, or holds
      more than weights.
    OSError: if the disk has no room.
  """
  path = pathlib.Path(os.path.realpath(path.expanduser()))
  _recover(path)
  _refuse_existing(path, overwrite, ours)
  path.parent.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(path.parent).free
  if nbytes > free:
    raise OSError(
      f"{path} needs {nbytes / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB "
      "left; make room, or save as bfloat16"
    )
  trial, old = (_beside(path, os.getpid(), kind) for kind in ("new", "old"))
  try:
    yield trial
    _refuse_existing(
      path, overwrite, ours
    )  # Something may have come meanwhile.
    if path.is_dir() and trial.is_dir() and not licences.found(trial):
      licences.carry(path, trial)
    if path.exists():
      path.rename(old)
    trial.rename(path)
  except BaseException:
    if old.exists():
      old.rename(path)
    raise
  finally:
    for left in (trial, old):
      remove(left)


def _beside(path: pathlib.Path, process: int, kind: str) -> pathlib.Path:
  name = f".{path.stem}.lumina_jax-{process}-{kind}{path.suffix}"
  return path.with_name(name)


def _recover(path: pathlib.Path) -> None:
  """Cleans up after processes that were killed, and after no others."""
  stem, suffix = re.escape(path.stem), re.escape(path.suffix)
  ours = re.compile(rf"\.{stem}\.lumina_jax-(\d+)-(new|old){suffix}")
  for left in list(path.parent.iterdir()) if path.parent.is_dir() else ():
    name = ours.fullmatch(left.name)
    if not name or _runs(int(name[1])):
      continue
    if name[2] == "old" and not path.exists():
      left.rename(path)  # Killed between two renames.
    remove(left)


def _runs(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return process != os.getpid()


def _refuse_existing(
  path: pathlib.Path, overwrite: bool, ours: re.Pattern
) -> None:
  if not path.exists() or (path.is_dir() and not any(path.iterdir())):
    return
  if not overwrite:
    raise FileExistsError(
      f"{path} exists; name another place, or overwrite it (--force, "
      "overwrite=True)"
    )
  if path.is_dir():
    foreign = _foreign(path, ours)
    if ours is PIPELINE:
      for part in sorted(p for p in path.iterdir() if p.is_dir()):
        foreign += [f"{part.name}/{name}" for name in _foreign(part, PARTS)]
    if foreign:
      raise FileExistsError(
        f"{path} holds more than weights ({', '.join(foreign[:4])}) and is not "
        "overwritten; name another place"
      )


def _foreign(folder: pathlib.Path, ours: re.Pattern) -> list[str]:
  kept = ours, licences.FILES
  names = sorted(entry.name for entry in folder.iterdir())
  return [n for n in names if not any(k.fullmatch(n) for k in kept)]


def remove(path: pathlib.Path) -> None:
  """Removes a file or folder, if it is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
