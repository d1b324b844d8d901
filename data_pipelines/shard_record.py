"""One record of a shard: a sample and its captions, as bytes.

The bytes are a small safetensors file: arrays by name, and all other values as
JSON in its metadata.

C channels of a sample, S tokens of a caption, E width of features.
"""

import json
import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save

METADATA = "record"  # A single key: safetensors writes several in any order.
DTYPES = {
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "U8": np.dtype(np.uint8),
}
ARRAYS = ("pixels", "mean", "std")


class ShardRecord(NamedTuple):
  """An encoded sample with its captions.

  Attributes:
    name: where the sample comes from, for people.
    epoch: how often the source was read before.
    captions: captions of the sample.
    pixels: `u8[*extents, C]`, if the sample is not encoded.
    mean: `f16[*extents, C]`, mean of the latents, shifted and scaled for a
      backbone.
    std: `f16[*extents, C]`, standard deviation of the latents, scaled.
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
  def extents(self) -> tuple[int, ...]:
    """Sizes of the axes, e.g. height and width."""
    values = self.mean if self.pixels is None else self.pixels
    return values.shape[:-1]

  def sample(self, rng: np.random.Generator) -> np.ndarray:
    """Samples latents, or returns pixels in [-1, 1]: `f32[*extents, C]`."""
    if self.pixels is not None:
      return self.pixels.astype(np.float32) / np.float32(127.5) - 1
    return sample_latents(self.mean, self.std, rng)


def sample_latents(
  mean: np.ndarray, std: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """mean + std eps with eps ~ N(0, 1), as float32."""
  eps = rng.standard_normal(mean.shape, np.float32)
  return mean.astype(np.float32) + std.astype(np.float32) * eps


def to_bytes(pixels: np.ndarray) -> np.ndarray:
  """Rounds `f32[..., C]` in [-1, 1] to the nearest byte, `u8[..., C]`."""
  values = (pixels + np.float32(1)) * np.float32(127.5)
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def pack(record: ShardRecord) -> bytes:
  """Serializes a record; equal records have equal bytes."""
  arrays = {
    name: array
    for name in ARRAYS
    if (array := getattr(record, name)) is not None
  }
  arrays |= {f"features_{i}": x for i, x in enumerate(record.features)}
  metadata = {
    "name": record.name,
    "epoch": record.epoch,
    "captions": record.captions,
  }
  return pack_arrays(arrays, metadata)


def unpack(data: bytes) -> ShardRecord:
  """The inverse of `pack`; arrays are read-only views.

  Raises:
    ValueError: if the bytes are not a record.
  """
  arrays, metadata = unpack_arrays(data)
  try:
    count = sum(name.startswith("features_") for name in arrays)
    record = ShardRecord(
      metadata["name"],
      metadata["epoch"],
      tuple(metadata["captions"]),
      *(arrays.get(name) for name in ARRAYS),
      tuple(arrays[f"features_{i}"] for i in range(count)),
    )
  except (KeyError, TypeError) as error:
    raise ValueError(f"not a record of a shard: {error}") from error
  _check(record)
  return record


def _check(record: ShardRecord) -> None:
  if record.mean is None and record.std is None:
    shapes = {np.shape(record.pixels)}
  else:
    shapes = {np.shape(record.mean), np.shape(record.std)}
  if len(shapes) > 1 or len(shapes.pop()) < 2:
    raise ValueError("not a record of a shard: no latents and no pixels")
  if not record.captions:
    raise ValueError("not a record of a shard: no caption")
  if len(record.features) not in (0, len(record.captions)):
    raise ValueError(
      f"not a record of a shard: {len(record.features)} features of "
      f"{len(record.captions)} captions"
    )


def pack_arrays(
  arrays: dict[str, np.ndarray], metadata: dict[str, Any]
) -> bytes:
  """Serializes arrays and JSON values to a safetensors file."""
  text = json.dumps(metadata, ensure_ascii=False)
  arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  return save(arrays, metadata={METADATA: text})


def unpack_arrays(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The inverse of `pack_arrays`.

  The reader of safetensors gives numpy no bfloat16, and reads no metadata of
  bytes. The file starts with the length of the header as u64. Then comes the
  header in JSON with dtype, shape and position of each array.

  Raises:
    ValueError: if the bytes are not such a file, or are cut off.
  """
  start = 8 + int.from_bytes(data[:8], "little")
  try:
    header = json.loads(data[8:start])
    metadata = json.loads(header.pop("__metadata__")[METADATA])
    arrays = {}
    for name, tensor in header.items():
      dtype, shape = DTYPES[tensor["dtype"]], tensor["shape"]
      begin, end = (start + offset for offset in tensor["data_offsets"])
      if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} of shape {shape} has {end - begin} bytes")
      flat = np.frombuffer(data, dtype, math.prod(shape), begin)
      arrays[name] = flat.reshape(shape)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(f"not a safetensors file of a shard: {error!r}") from error
  return arrays, metadata
