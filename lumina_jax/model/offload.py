"""Parameters that can leave the device and come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Part:
  """The parameters of one network: on the device, or a way to get them there.

  A language model, a backbone and an autoencoder may each fit a device that
  does not hold them together.
  """

  def __init__(self, load: Callable[[], Any]):
    """Remembers how to load; nothing is loaded yet."""
    self._load, self._params = load, None

  @classmethod
  def of(cls, params: Any) -> Part:
    """Parameters that are at hand, and are never given up."""
    part = cls(lambda: params)
    part._params = params
    part.free = lambda: None
    return part

  def get(self) -> Any:
    """The parameters, loaded if they are not there."""
    if self._params is None:
      self._params = self._load()
    return self._params

  @property
  def loaded(self) -> bool:
    return self._params is not None

  def free(self) -> None:
    """Gives up the memory; `get` loads anew."""
    self._params = None
