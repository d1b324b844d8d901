"""Metrics on disk: one JSON object a line, and TensorBoard."""

from __future__ import annotations

import logging
from typing import Any

from etils import epath

from lumina_jax.files import atomic, jsonl
from lumina_jax.parallel import processes

FILE = "metrics.jsonl"


class Metrics:
  """Writes metrics; on resume cuts back what lies after the checkpoint.

  Of several processes the first one writes. A full disk stops no training:
  lines that it does not take wait for the next one.
  """

  def __init__(self, workdir: epath.PathLike, step: int):
    """Opens the files of a run that goes on after `step` batches."""
    self._rows, self._board, self._waiting = None, None, []
    if not processes.is_first():
      return
    kept = [row for row in read(workdir) if row["step"] <= step]
    self._rows = jsonl.Writer(epath.Path(workdir) / FILE, kept)
    if atomic.in_store(workdir):
      logging.warning("TensorBoard files are written to local workdirs only")
    else:
      # It imports PyTorch where that is installed, which takes seconds.
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(
        str(epath.Path(workdir) / "tensorboard"), purge_step=step + 1
      )

  def __enter__(self) -> Metrics:
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Adds the values of one step: numbers, None, or lists of these."""
    if self._rows is None:
      return
    self._waiting.append({"step": step, **values})
    self._pass_on()
    for name, value in _flat(values).items():
      if not self._board_writes():
        break
      self._board.add_scalar(f"train/{name}", value, step)

  def flush(self) -> None:
    """Makes what was written last, as far as there is room for it."""
    if self._rows is None:
      return
    self._pass_on()
    try:
      self._rows.flush()
    except OSError as error:
      logging.warning("%s", error)

  def close(self) -> None:
    self.flush()
    try:
      if self._board_writes():
        self._board.close()
    except OSError as error:
      logging.warning("TensorBoard: %s", error)

  def _board_writes(self) -> bool:
    """Whether TensorBoard's files are still written.

    Its thread ends at the first fault; from then on a full queue, and so the
    run, would wait for it for ever.
    """
    if self._board is None:
      return False
    if self._board.file_writer.event_writer._worker.is_alive():
      return True
    logging.warning("TensorBoard's files end here: they could not be written")
    self._board = None
    return False

  def _pass_on(self) -> None:
    try:
      while self._waiting:
        self._rows.append(self._waiting[0])
        self._waiting.pop(0)
    except OSError as error:
      logging.warning("%s; %d wait", error, len(self._waiting))


def _flat(values: dict[str, Any]) -> dict[str, float]:
  """A curve for each number of a list; what is None has none."""
  flat = {}
  for name, value in values.items():
    if isinstance(value, list):
      flat |= {f"{name}/{i}": x for i, x in enumerate(value)}
    else:
      flat[name] = value
  return {name: value for name, value in flat.items() if value is not None}


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads all rows of a run."""
  return jsonl.read(epath.Path(workdir) / FILE)
