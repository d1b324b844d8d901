"""Parameters that can leave the device and come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Offloadable:
  """Parameters of one network, on the device or loadable.

  A language model, a backbone and an autoencoder may each fit a device that
  cannot hold all of them.
  """

  def __init__(self, load: Callable[[], Any]):
    """Takes a function that loads the parameters; calls it on first use."""
    self._load, self._params, self._pinned = load, None, False

  @classmethod
  def pinned(cls, params: Any) -> Offloadable:
    """Parameters that stay on the device."""
    held = cls(lambda: params)
    held._params, held._pinned = params, True
    return held

  def get(self) -> Any:
    """The parameters; loads them if they are not on the device."""
    if self._params is None:
      self._params = self._load()
    return self._params

  @property
  def loaded(self) -> bool:
    return self._params is not None

  def free(self) -> None:
    """Frees the device's memory, unless the parameters are pinned."""
    if not self._pinned:
      self._params = None
