"""Metrics on disk: one JSON object a line, and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

FILE = "metrics.jsonl"


class Metrics:
  """Writes metrics; on resume cuts back what lies after the checkpoint."""

  def __init__(self, workdir: epath.PathLike, step: int):
    """Opens the files of a run that goes on after `step` updates."""
    workdir = epath.Path(workdir)
    self._path = workdir / FILE
    self._local = "://" not in str(workdir)
    if self._path.exists():
      kept = [row for row in read(workdir) if row["step"] <= step]
      text = "".join(json.dumps(row) + "\n" for row in kept)
      new = self._path.with_name(f"{FILE}.tmp")
      new.write_text(text)
      new.replace(self._path)
    self._board = None
    if self._local:
      self._board = SummaryWriter(
        str(workdir / "tensorboard"), purge_step=step + 1
      )
    else:
      logging.warning("TensorBoard files are written to local workdirs only")

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds the values of one step."""
    line = json.dumps({"step": step, **values}) + "\n"
    if self._local:
      with self._path.open("a") as file:
        file.write(line)
    else:  # Buckets cannot append.
      before = self._path.read_text() if self._path.exists() else ""
      self._path.write_text(before + line)
    if self._board:
      for name, value in values.items():
        self._board.add_scalar(f"train/{name}", value, step)

  def close(self) -> None:
    if self._board:
      self._board.close()


class Window:
  """Means of metrics over a window of steps, fetched one step late.

  To wait for the values of the step just dispatched would leave the device
  idle; those of the step before are there.
  """

  def __init__(self, metrics: Metrics, size: int):
    self._metrics, self._size = metrics, size
    self._pending: tuple[int, dict[str, jax.Array]] | None = None
    self._values: list[dict[str, float]] = []
    self._since = time.monotonic()
    self.shown: tuple[int, str] = 0, ""

  def add(self, step: int, values: dict[str, jax.Array]) -> None:
    """Takes the values of `step`, and fetches those of the step before."""
    self.finish()
    self._pending = step, values

  def finish(self) -> None:
    """Fetches what is pending; a full window goes to disk."""
    if self._pending is None:
      return
    step, values = self._pending
    self._pending = None
    values = {name: float(value) for name, value in values.items()}
    if not np.isfinite([values["loss"], values["grad_norm"]]).all():
      raise FloatingPointError(
        f"step {step} has loss {values['loss']} and gradient norm "
        f"{values['grad_norm']}; the newest checkpoint is from before it. Try "
        "a lower config.optimizer.learning_rate or clip"
      )
    self.shown = step, f"loss {values['loss']:.3f}"
    self._values.append(values)
    if step % self._size == 0:
      self.write()

  def write(self) -> None:
    """Writes the means of the steps fetched since the last line, if any."""
    if not self._values:
      return
    now = time.monotonic()
    means = {
      name: float(np.mean([v[name] for v in self._values]))
      for name in self._values[0]
    }
    means["steps_per_second"] = len(self._values) / (now - self._since)
    self._metrics.write(self.shown[0], means)
    self._values, self._since = [], now

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves time spent on something else out of the speed."""
    began = time.monotonic()
    yield
    self._since += time.monotonic() - began


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """All rows of a run; a last line that a crash cut short is left out."""
  path = epath.Path(workdir) / FILE
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      logging.warning("a line of %s is cut short, ignored", path)
  return rows
