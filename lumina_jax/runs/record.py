"""The record of a run: code, command and machine of each start."""

import datetime
import json
import pathlib
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax
from etils import epath

from lumina_jax.files import atomic
from lumina_jax.files.json_file import write_json

FILE = "record.json"
PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
  "pillow",
  "array_record",
  "scikit-learn",
)


def add_start(workdir: epath.PathLike, seed: int, step: int) -> None:
  """Adds an entry for this start of the run.

  Args:
    workdir: workdir of the run.
    seed: seed of the run.
    step: step that it resumes at.
  """
  starts = [*read(workdir), _describe_start(seed, step)]
  write_json(epath.Path(workdir) / FILE, starts)


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the entries of all starts."""
  text = atomic.read_text(epath.Path(workdir) / FILE)
  return [] if text is None else json.loads(text)


def _describe_start(seed: int, step: int) -> dict[str, Any]:
  return {
    "started": datetime.datetime.now(datetime.UTC).isoformat(
      timespec="seconds"
    ),
    "from_step": step,
    "command": " ".join(sys.argv),
    "seed": seed,
    "git_commit": _git_commit(),
    "python": platform.python_version(),
    "machine": platform.platform(),
    "devices": [str(device) for device in jax.devices()],
    "device_kind": jax.devices()[0].device_kind,
    "processes": jax.process_count(),
    "packages": {name: _version(name) for name in PACKAGES},
  }


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return "not installed"


def _git_commit() -> str:
  """Commit of this code, with a "+" if files have changed since."""
  folder = pathlib.Path(__file__).parent

  def git(*args):
    return subprocess.run(
      ["git", *args], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    changed = "+" if git("status", "--porcelain", "-uno") else ""
    return git("rev-parse", "--short=12", "HEAD") + changed
  except (OSError, subprocess.CalledProcessError):
    return "unknown (not a git checkout)"
