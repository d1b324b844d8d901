"""One record of a shard: a medium and its captions, as bytes.

The bytes are a small safetensors file, so that a record says itself what is in
it: arrays by name, and what is no array as JSON in the file's metadata.

h rows, w columns and C channels of a medium, S tokens of a caption, E width.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save

FACTS = "record"  # One key: several would be written in any order.
TYPES = {
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "U8": np.dtype(np.uint8),
}


class Record(NamedTuple):
  """A picture, encoded, and what is said of it.

  Attributes:
    name: of where it comes from, for people.
    epoch: how often the source was drawn from before.
    captions: of the picture.
    pixels: `u8[h, w, C]`, if it is not encoded.
    mean: `f16[h, w, C]`, of the latents' distribution, shifted and scaled for a
      backbone.
    std: `f16[h, w, C]`, its deviation, scaled.
    features: `bf16[S, E]` of each caption; () = captions are text only.
  """

  name: str
  epoch: int
  captions: tuple[str, ...]
  pixels: np.ndarray | None = None
  mean: np.ndarray | None = None
  std: np.ndarray | None = None
  features: tuple[np.ndarray, ...] = ()

  @property
  def extents(self) -> tuple[int, int]:
    """Height h and width w."""
    medium = self.mean if self.pixels is None else self.pixels
    return medium.shape[:2]

  def medium(self, rng: np.random.Generator) -> np.ndarray:
    """Latents drawn from their distribution, or pixels: `f32[h, w, C]`."""
    if self.pixels is not None:
      return self.pixels.astype(np.float32) / np.float32(127.5) - 1
    return draw(self.mean, self.std, rng)


def draw(
  mean: np.ndarray, std: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """mean + std eps with eps ~ N(0, 1), `f32` of their shape."""
  eps = rng.standard_normal(mean.shape, np.float32)
  return mean.astype(np.float32) + std.astype(np.float32) * eps


def to_bytes(pixels: np.ndarray) -> np.ndarray:
  """`f32[h, w, C]` in [-1, 1] -> the nearest of 256 shades, `u8[h, w, C]`."""
  shades = (pixels + np.float32(1)) * np.float32(127.5)
  return np.clip(np.rint(shades), 0, 255).astype(np.uint8)


def pack(record: Record) -> bytes:
  """A record as bytes, always the same ones."""
  arrays = {
    name: array
    for name in ("pixels", "mean", "std")
    if (array := getattr(record, name)) is not None
  }
  arrays |= {f"features_{i}": x for i, x in enumerate(record.features)}
  facts = {
    "name": record.name,
    "epoch": record.epoch,
    "captions": record.captions,
  }
  return pack_arrays(arrays, facts)


def unpack(data: bytes) -> Record:
  """The inverse of `pack`; arrays are views and not to be written to.

  Raises:
    ValueError: if that is no record.
  """
  arrays, facts = unpack_arrays(data)
  try:
    captions = tuple(facts["captions"])
    features = [name for name in arrays if name.startswith("features_")]
    record = Record(
      facts["name"],
      facts["epoch"],
      captions,
      *(arrays.get(name) for name in ("pixels", "mean", "std")),
      tuple(arrays[f"features_{i}"] for i in range(len(features))),
    )
  except (KeyError, TypeError) as error:
    raise ValueError(f"no record of a shard: {error} is not as due") from error
  _check(record)
  return record


def _check(record: Record) -> None:
  media = [record.pixels] if record.mean is None else [record.mean, record.std]
  shapes = {None if x is None else x.shape for x in media}
  if None in shapes or len(shapes) > 1 or len(shapes.pop()) != 3:
    raise ValueError("no record of a shard: it has neither latents nor pixels")
  if not record.captions:
    raise ValueError("no record of a shard: it has no caption")
  if len(record.features) not in (0, len(record.captions)):
    raise ValueError(
      f"no record of a shard: features of {len(record.features)} captions, of "
      f"which there are {len(record.captions)}"
    )


def pack_arrays(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> bytes:
  """A safetensors file of arrays and of JSON in its metadata."""
  text = json.dumps(facts, ensure_ascii=False)
  arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  return save(arrays, metadata={FACTS: text})


def unpack_arrays(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The inverse of `pack_arrays`.

  It is read here since safetensors' own reader gives numpy no bfloat16, and no
  metadata of bytes. The file begins with the length of a header as u64, then
  comes the header in JSON: of each tensor its type, shape and place after it.

  Raises:
    ValueError: if the bytes are no such file, or cut short.
  """
  start = 8 + int.from_bytes(data[:8], "little")
  try:
    header = json.loads(data[8:start])
    facts = json.loads(header.pop("__metadata__")[FACTS])
    arrays = {}
    for name, tensor in header.items():
      dtype, shape = TYPES[tensor["dtype"]], tensor["shape"]
      begin, end = (start + offset for offset in tensor["data_offsets"])
      if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} of shape {shape} has {end - begin} bytes")
      flat = np.frombuffer(data, dtype, math.prod(shape), begin)
      arrays[name] = flat.reshape(shape)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"no safetensors file of ours: {error!r}") from error
  return arrays, facts
