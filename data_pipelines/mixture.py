"""Several sources as one, each drawn as often as its weight says."""

import functools
from collections.abc import Hashable, Sequence

import numpy as np

from data_pipelines.source import Draw, Sample, Size, Source, locate


class Mixture:
  """The records of all sources, numbered one source after the other.

  Attributes:
    weights: weight of each record, for `RowPlan`. A record of a source of
      weight 2 is drawn twice as often as one of a source of weight 1.
  """

  def __init__(self, sources: Sequence[Source], weights: Sequence[float] = ()):
    """Mixes sources.

    Args:
      sources: at least one.
      weights: weight of the records of each source; () = equal weights.

    Raises:
      ValueError: unless every source has a positive weight.
    """
    weights = tuple(weights) or (1.0,) * len(sources)
    if len(weights) != len(sources) or min(weights, default=0) <= 0:
      raise ValueError(
        f"{len(sources)} sources with weights {weights}: give a positive one "
        "for each, or none"
      )
    self._sources = list(sources)
    counts = [len(source.sizes) for source in sources]
    self._ends = np.cumsum(counts)
    self.weights = np.repeat(np.asarray(weights, np.float64), counts)

  @functools.cached_property
  def sizes(self) -> list[Size]:
    """Tokens, words and samples (1) that each record takes at most."""
    return [tuple(size) for source in self._sources for size in source.sizes]

  @functools.cached_property
  def kinds(self) -> list[Hashable]:
    """Records swap slots within a source only, so that weights are kept."""
    return [
      (number, kind)
      for number, source in enumerate(self._sources)
      for kind in source.kinds
    ]

  def sample(self, draw: Draw) -> Sample:
    """Returns the sample of a draw."""
    source, start = self._locate(draw.record)
    return source.sample(
      Draw(draw.epoch, draw.record - start, draw.slot - start)
    )

  def name(self, record: int) -> str:
    """Returns the name of a record, for messages."""
    source, start = self._locate(record)
    return source.name(record - start)

  def _locate(self, record: int) -> tuple[Source, int]:
    """The source of a record, and the number of its first record."""
    number, start = locate(self._ends, record)
    return self._sources[number], start
