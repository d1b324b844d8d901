"""What the configs of all sources have in common."""

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipelines.source import Source
from lumina_jax.tokens import Grid


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
  """Who loads batches; the content of batches does not depend on it.

  Attributes:
    threads: threads that load batches. One is enough where rows are cheap;
      the step needs the cores. Decoding images releases the interpreter lock.
    workers: processes that load batches instead; 0 = none.
  """

  threads: int = 1
  workers: int = 0

  def __post_init__(self):
    if self.threads < 1 or self.workers < 0:
      raise ValueError(
        f"threads = {self.threads}, workers = {self.workers}: use at least one "
        "thread, and 0 or more workers"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
  """Budgets of a row; sources derive their configs from this.

  Attributes:
    row_tokens: token budget L of a row.
    row_words: text budget S of a row.
    row_samples: largest number N of samples in a row.
  """

  row_tokens: int
  row_words: int
  row_samples: int

  # Without annotations these are no fields, but a config may make them some.
  bad_limit = 1.0  # Generated records are never bad.
  loader = LoaderOptions()

  @property
  def budget(self) -> tuple[int, int, int]:
    """Tokens, words and samples that a row offers."""
    return self.row_tokens, self.row_words, self.row_samples

  def make_source(
    self,
    channels: int,
    grid: Callable[..., Grid],
    tokenize: Callable[..., np.ndarray],
    seed: int,
  ) -> Source:
    """Makes the source of a run; not for data that need encoders.

    Args:
      channels: channels C of the latents.
      grid: extents -> layout, e.g. `ModelConfig.grid`.
      tokenize: prompt -> codes, e.g. `Network.tokenize`.
      seed: seed of all random choices.
    """
    raise NotImplementedError
