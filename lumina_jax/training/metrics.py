"""Metrics on disk: JSON Lines and TensorBoard."""

from __future__ import annotations

import logging
from typing import Any

from etils import epath

from lumina_jax.files import atomic, jsonl
from lumina_jax.parallel import processes

FILE = "metrics.jsonl"


class MetricsWriter:
  """Writes metrics; a resumed run first drops rows after its checkpoint.

  Only process 0 writes. A full disk ends no run: rows that cannot be written
  wait for the next attempt.
  """

  def __init__(self, workdir: epath.PathLike, step: int):
    """Opens the files of a run that continues after `step` batches."""
    self._rows, self._tensorboard, self._pending = None, None, []
    if not processes.is_first():
      return
    kept = [row for row in read(workdir) if row["step"] <= step]
    self._rows = jsonl.Writer(epath.Path(workdir) / FILE, kept)
    if atomic.in_store(workdir):
      logging.warning("TensorBoard files are written to local workdirs only")
    else:
      # Imports PyTorch if it is installed, which takes seconds.
      from tensorboardX import SummaryWriter

      self._tensorboard = SummaryWriter(
        str(epath.Path(workdir) / "tensorboard"), purge_step=step + 1
      )

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def write(self, step: int, metrics: dict[str, Any]) -> None:
    """Writes the metrics of a step: numbers, None, or lists of these."""
    if self._rows is None:
      return
    self._pending.append({"step": step, **metrics})
    self._write_pending()
    for name, value in _scalars(metrics).items():
      if not self._tensorboard_works():
        break
      self._tensorboard.add_scalar(f"train/{name}", value, step)

  def flush(self) -> None:
    """Makes all rows survive a power cut, as far as the disk has room."""
    if self._rows is None:
      return
    self._write_pending()
    try:
      self._rows.flush()
    except OSError as error:
      logging.warning("%s", error)

  def close(self) -> None:
    """Flushes and closes the files."""
    self.flush()
    try:
      if self._tensorboard_works():
        self._tensorboard.close()
    except OSError as error:
      logging.warning("TensorBoard: %s", error)

  def _tensorboard_works(self) -> bool:
    """Whether TensorBoard's thread still writes.

    The thread ends at the first error. From then on, a full queue would block
    the run forever.
    """
    if self._tensorboard is None:
      return False
    if self._tensorboard.file_writer.event_writer._worker.is_alive():
      return True
    logging.warning("TensorBoard's files end here: they could not be written")
    self._tensorboard = None
    return False

  def _write_pending(self) -> None:
    try:
      while self._pending:
        self._rows.append(self._pending[0])
        self._pending.pop(0)
    except OSError as error:
      logging.warning("%s; %d rows wait", error, len(self._pending))


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
  """One curve for each number of a list; None is left out."""
  scalars = {}
  for name, value in metrics.items():
    if isinstance(value, list):
      scalars |= {f"{name}/{i}": x for i, x in enumerate(value)}
    else:
      scalars[name] = value
  return {name: value for name, value in scalars.items() if value is not None}


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads all rows of a run."""
  return jsonl.read(epath.Path(workdir) / FILE)
