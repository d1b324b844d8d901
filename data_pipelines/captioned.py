"""Config of captioned data: folders of images, shards of latents, datasets."""

import dataclasses

from data_pipelines.source_config import LoaderOptions, SourceConfig
from lumina_jax.files import schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedConfig(SourceConfig):
  """Samples with captions, from files or encoded in advance.

  Attributes:
    sources: each a folder of images, a .yaml file in the original's format, a
      folder of shards that `lumina_jax.encode` wrote, or "tfds:NAME...".
    resolutions: sides of the squares whose area images are resized to, in
      pixels. An image takes the largest that does not enlarge it.
    weights: how often a record of each source is drawn, relative to records
      of the others; () = equally often.
    max_aspect_ratio: largest ratio of an image's sides.
    bucket_choices: an image gets one of this many shapes that fit it best.
    condition_dropout: share of samples whose caption is "".
    flip: whether half of the images are mirrored.
    bad_limit: a larger share of bad records ends the run.
    threads: threads that load batches.
    workers: processes that load batches instead; 0 = none.
  """

  sources: tuple[str, ...]
  resolutions: tuple[int, ...]
  weights: tuple[float, ...] = ()
  max_aspect_ratio: float = 4.0
  bucket_choices: int = 4
  condition_dropout: float = 0.1
  flip: bool = False
  bad_limit: float = 0.02
  threads: int = 2
  workers: int = 0

  def __post_init__(self):
    for name in ("sources", "resolutions", "weights"):
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
      raise ValueError(f"weights {self.weights}: must be positive")
    schema.check_share(self, "condition_dropout", "bad_limit")
    schema.check_positive(self, "bucket_choices")
    _ = self.loader

  @property
  def loader(self) -> LoaderOptions:
    """Who loads batches."""
    return LoaderOptions(self.threads, self.workers)
