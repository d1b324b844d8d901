"""What a run learns from: pictures in folders, shards of latents, datasets."""

from __future__ import annotations

import dataclasses

from data_pipelines.batches import Reading


@dataclasses.dataclass(frozen=True)
class MediaConfig:
  """Pictures with captions, as they are or encoded before.

  Attributes:
    sources: each a folder of pictures, a .yaml of the original's format, a
      folder of shards that `lumina_jax.encode` made, or "tfds:NAME...".
    weights: how often a record of each source is drawn relative to those of
      the others; () = equally often.
    sides: of the squares whose area a picture is brought to, in pixels; with
      several, a picture takes the largest that it need not be enlarged for.
    longest: side of a picture relative to the other, at the most.
    choices: of the shapes that fit a picture best, how many it may get.
    condition_dropout: share of pictures whose caption is "".
    flip: whether half of the pictures are mirrored.
    bad_limit: share of broken records above which a run ends.
    threads: that read and decode.
    workers: processes that do in their place; 0 = none.
    row_tokens: token budget L of a row.
    row_words: text budget S of a row.
    row_samples: pictures N of a row at the most.
  """

  sources: tuple[str, ...]
  sides: tuple[int, ...]
  row_tokens: int
  row_words: int
  row_samples: int
  weights: tuple[float, ...] = ()
  longest: float = 4.0
  choices: int = 4
  condition_dropout: float = 0.1
  flip: bool = False
  bad_limit: float = 0.02
  threads: int = 2
  workers: int = 0

  def __post_init__(self):
    for name in ("sources", "sides", "weights"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if not self.sources or not all(isinstance(s, str) for s in self.sources):
      raise ValueError(
        f"sources {self.sources}: name at least one folder, in quotes if its "
        "name is a number"
      )
    if self.weights and len(self.weights) != len(self.sources):
      raise ValueError(
        f"weights {self.weights} of {len(self.sources)} sources: one for each"
      )
    if not all(weight > 0 for weight in self.weights):
      raise ValueError(f"weights {self.weights}: all positive")
    for name in ("condition_dropout", "bad_limit"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name} {getattr(self, name)}: from 0 to 1")
    if self.choices < 1:
      raise ValueError(f"choices = {self.choices}: at least 1")
    _ = self.reading

  @property
  def budget(self) -> tuple[int, int, int]:
    return self.row_tokens, self.row_words, self.row_samples

  @property
  def reading(self) -> Reading:
    return Reading(self.threads, self.workers)
