"""Writes a file or folder whole or not at all, and never loses what was there.

`files.atomic` writes small files. Here what is written may be a folder, and as
large as the disk: weights.
"""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from lumina_jax.interop import licences

# Files that we write into folders of weights, and may replace there.
WEIGHT_FILES = re.compile(
  r"consolidated.*|model_args\.pth|diffusion_pytorch_model.*|config\.json|"
  r"network\.json|params"
)
# Files and folders of a pipeline, which weights alone never replace.
PIPELINE_FILES = re.compile(
  r"config\.json|model\.safetensors|model_index\.json|transformer|vae|"
  r"text_encoder|tokenizer|scheduler"
)
# Files that other programs put into the folders of a pipeline's components.
COMPONENT_FILES = re.compile(
  r"(generation_)?config\.json|(diffusion_pytorch_)?model.*\.safetensors.*|"
  r"scheduler_config\.json|tokenizer.*|special_tokens_map\.json|"
  r"added_tokens\.json|vocab\.json|merges\.txt|chat_template\.jinja"
)


SINGLE_FILE = (".safetensors", ".pth")


def check_name(path: pathlib.Path) -> None:
  """Checks that a path can name a folder or file of weights.

  Raises:
    ValueError: naming what to write instead.
  """
  if path.suffix in (".pt", ".ckpt", ".bin"):
    raise ValueError(
      f"{path} looks like a file: files end in {' or '.join(SINGLE_FILE)}"
    )
  if "://" in str(path) or str(path).startswith("gs:"):
    raise ValueError(f"{path}: buckets are not supported; name a local path")


@contextlib.contextmanager
def staged(
  path: pathlib.Path,
  nbytes: int,
  overwrite: bool,
  replaceable: re.Pattern = WEIGHT_FILES,
) -> Iterator[pathlib.Path]:
  """Yields a path to write to, which is renamed to `path` at the end.

  On an error the new files are removed and the old ones stay. Symbolic links
  are followed and stay links.

  Args:
    path: the file or folder to write.
    nbytes: about how many bytes will be written.
    overwrite: whether to replace weights that exist.
    replaceable: names that may be replaced. Licences and model cards may be
      replaced too; they stay if no new ones are written.

  Raises:
    FileExistsError: if the path exists and `overwrite` is not set, or if it
      holds anything but weights.
    OSError: if the disk has no room, or the folder above cannot be made.
    ValueError: as `check_name`.
  """
  check_name(path)
  path = pathlib.Path(os.path.realpath(path.expanduser()))
  _recover(path)
  _check_existing(path, overwrite, replaceable)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(
      f"cannot make the folder {path.parent}: {error.strerror}; name another"
    ) from error
  free = shutil.disk_usage(path.parent).free
  if nbytes > free:
    raise OSError(
      f"{path} needs {nbytes / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB "
      "left; make room, or save as bfloat16"
    )
  new, old = (_temporary(path, os.getpid(), kind) for kind in ("new", "old"))
  try:
    yield new
    # Again: another process may have written it meanwhile.
    _check_existing(path, overwrite, replaceable)
    if path.is_dir() and new.is_dir() and not licences.find(new):
      licences.copy(path, new)
    if path.exists():
      path.rename(old)
    new.rename(path)
  except BaseException:
    if old.exists():
      old.rename(path)
    raise
  finally:
    for leftover in (new, old):
      _remove(leftover)


def _temporary(path: pathlib.Path, process: int, kind: str) -> pathlib.Path:
  name = f".{path.stem}.lumina_jax-{process}-{kind}{path.suffix}"
  return path.with_name(name)


def _recover(path: pathlib.Path) -> None:
  """Cleans up after processes that were killed while they wrote `path`."""
  stem, suffix = re.escape(path.stem), re.escape(path.suffix)
  temporary = re.compile(rf"\.{stem}\.lumina_jax-(\d+)-(new|old){suffix}")
  for leftover in list(path.parent.iterdir()) if path.parent.is_dir() else ():
    name = temporary.fullmatch(leftover.name)
    if not name or _is_running(int(name[1])):
      continue
    if name[2] == "old" and not path.exists():
      leftover.rename(path)  # It was killed between two renames.
    _remove(leftover)


def _is_running(process: int) -> bool:
  """Whether another process of this id runs."""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return process != os.getpid()


def _check_existing(
  path: pathlib.Path, overwrite: bool, replaceable: re.Pattern
) -> None:
  if not path.exists() or (path.is_dir() and not any(path.iterdir())):
    return
  if not overwrite:
    raise FileExistsError(
      f"{path} exists; name another path, or overwrite it (--force, "
      "overwrite=True)"
    )
  if path.is_dir():
    others = _other_files(path, replaceable)
    if replaceable is PIPELINE_FILES:
      for part in sorted(p for p in path.iterdir() if p.is_dir()):
        names = _other_files(part, COMPONENT_FILES)
        others += [f"{part.name}/{name}" for name in names]
    if others:
      raise FileExistsError(
        f"{path} holds more than weights ({', '.join(others[:4])}) and is not "
        "overwritten; name another path"
      )


def _other_files(folder: pathlib.Path, replaceable: re.Pattern) -> list[str]:
  patterns = replaceable, licences.FILES
  names = sorted(entry.name for entry in folder.iterdir())
  return [n for n in names if not any(p.fullmatch(n) for p in patterns)]


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
