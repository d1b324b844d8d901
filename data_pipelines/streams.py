"""Streams of random numbers: the first number of every seed.

NumPy pads seeds with zeros, so seeds of different lengths could be equal. A
stream of its own keeps the numbers of each purpose apart. The values must not
change: plans and crops of existing runs depend on them.
"""

from __future__ import annotations

import enum


@enum.unique
class Stream(enum.IntEnum):
  """What random numbers are for."""

  PLAN_MIX = 1
  PLAN_EPOCH = 2
  DIGITS = 3
  DIGIT_CAPTION = 4
  PATTERN = 5
  SYNTHETIC = 6
  IMAGE_BUCKET = 7
  IMAGE_CROP = 8
  IMAGE_CAPTION = 9
  IMAGE_LATENTS = 10
  SHARD = 13
  PLAN_EXTRA = 30
  PLAN_DEAL = 31
