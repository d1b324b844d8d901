"""Several sources as one, each drawn from as often as its weight says."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence

import numpy as np

from data_pipelines.source import Draw, Sample, Source


class Mixture:
  """Records of all sources, numbered one source after the other.

  Attributes:
    weights: of each record, for the row plan: a record of a source of weight 2
      is drawn twice as often as one of weight 1.
  """

  def __init__(self, sources: Sequence[Source], weights: Sequence[float] = ()):
    """Mixes sources.

    Args:
      sources: at least one.
      weights: of the records of each source; () = equal ones.

    Raises:
      ValueError: if there is not one positive weight for each source.
    """
    weights = tuple(weights) or (1.0,) * len(sources)
    if len(weights) != len(sources) or min(weights, default=0) <= 0:
      raise ValueError(
        f"{len(sources)} sources with weights {weights}: a positive one for "
        "each, or none"
      )
    self._sources = list(sources)
    counts = [len(source.sizes) for source in sources]
    self._ends = np.cumsum(counts)
    self.weights = np.repeat(np.asarray(weights, np.float64), counts)

  @functools.cached_property
  def sizes(self) -> list[tuple[int, int, int]]:
    return [tuple(size) for source in self._sources for size in source.sizes]

  @functools.cached_property
  def kinds(self) -> list[Hashable]:
    """Only records of one source change places: else weights would mix."""
    return [
      (number, kind)
      for number, source in enumerate(self._sources)
      for kind in source.kinds
    ]

  def sample(self, draw: Draw) -> Sample:
    source, start = self._find(draw.record)
    return source.sample(
      Draw(draw.epoch, draw.record - start, draw.place - start)
    )

  def name(self, record: int) -> str:
    source, start = self._find(record)
    return source.name(record - start)

  def _find(self, record: int) -> tuple[Source, int]:
    number = int(np.searchsorted(self._ends, record, side="right"))
    start = int(self._ends[number - 1]) if number else 0
    return self._sources[number], start
