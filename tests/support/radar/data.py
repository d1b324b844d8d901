"""Echoes of moving targets: chirps under noise, as latents of the codec."""

import dataclasses

import numpy as np
from support.radar.codec import Dct, DctConfig

from data_pipelines.source import Sample
from data_pipelines.source_config import SourceConfig

SPEEDS = 4


def echo(speed, samples):
  """The echo of a target without noise, `f32[T, 1]` in [-1, 1]."""
  t = np.arange(samples) / samples
  phase = (speed + 1) * t * (1 + t) * 2 + 0.1
  return np.sin(2 * np.pi * phase).astype(np.float32)[:, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadarConfig(SourceConfig):
  """Records of an epoch, each of so many samples."""

  echoes: int
  samples: int
  noise: float

  def make_source(self, channels, grid, tokenize, seed):
    return Echoes(self, grid(self.samples // channels), tokenize, seed)


class Echoes:
  """See `data_pipelines.source.Source`."""

  def __init__(self, cfg, grid, tokenize, seed):
    self._cfg, self._grid, self._tokenize, self._seed = (
      cfg,
      grid,
      tokenize,
      seed,
    )
    self._codec = Dct(DctConfig(8))
    self.sizes = [(grid.num_tokens, 2, 1)] * cfg.echoes
    self.kinds = self.sizes

  def name(self, record):
    return f"echo {record}"

  def sample(self, draw):
    rng = np.random.default_rng([self._seed, draw.epoch, draw.record])
    speed, cfg = int(rng.integers(SPEEDS)), self._cfg
    noise = cfg.noise * rng.standard_normal((cfg.samples, 1))
    latents = np.asarray(self._codec.encode(echo(speed, cfg.samples) + noise))
    prompt = f"target {speed}"
    patches = self._grid.tokenize(latents.astype(np.float32))
    return Sample(self._grid, patches, self._tokenize(prompt), prompt)
