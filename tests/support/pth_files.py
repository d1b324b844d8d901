"""PyTorch files made by hand: pickles of any opcodes."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from lumina_jax.interop import pth

PROTO = b"\x80\2"
DTYPES = [
  np.float64,
  np.float32,
  np.float16,
  ml_dtypes.bfloat16,
  np.int64,
  np.int32,
  np.bool_,
]
NAMESPACE = {
  "model": "NextDiT_2B_GQA_patch2",
  "lr": 1e-4,
  "steps": 1 << 40,
  "debug": False,
  "none": None,
  "sizes": [1, (2, 3), {4, 5}],
  "nested": {"a": {"b": []}, 1: {"é"}},
}


def opcodes(value) -> bytes:
  """Opcodes of a plain value."""
  return pickle.dumps(value, 2)[2:-1]


def call(module, name, *args, form="REDUCE") -> bytes:
  """Opcodes of a call of a function that need not exist here."""
  values = b"".join(opcodes(x) for x in args)
  match form:
    case "REDUCE":
      return f"c{module}\n{name}\n".encode() + b"(" + values + b"tR"
    case "STACK_GLOBAL":
      return opcodes(module) + opcodes(name) + b"\x93(" + values + b"tR"
    case "INST":
      return b"(" + values + f"i{module}\n{name}\n".encode()


def tensor_opcodes(
  offset=0, shape=(2, 3), strides=(3, 1), key="0", metadata=b"N"
) -> bytes:
  """Opcodes of a tensor in a storage of six float32."""
  return b"".join(
    [
      b"ctorch._utils\n_rebuild_tensor_v2\n((",
      opcodes("storage"),
      b"ctorch\nFloatStorage\n",
      *map(opcodes, (key, "cuda:0", 6)),
      b"tQ",
      *map(opcodes, (offset, shape, strides, False)),
      b"ccollections\nOrderedDict\n)R",
      metadata,
      b"tR",
    ]
  )


def pack(path, code, compression=zipfile.ZIP_STORED, **records) -> None:
  """Writes a file of a pickle, a storage of six float32 and other records."""
  records = {
    "data.pkl": PROTO + code + b".",
    "data/0": np.arange(6, dtype="<f4").tobytes(),
    "version": b"3\n",
  } | {name.replace("__", "/"): data for name, data in records.items()}
  with zipfile.ZipFile(path, "w", compression) as file:
    for name, data in records.items():
      file.writestr(f"by_hand/{name}", data)


def write(path, arrays) -> None:
  with pth.Writer(path) as file:
    for name, array in arrays.items():
      file.add(name, array)


def samples(dtype) -> dict[str, np.ndarray]:
  """Arrays of several shapes and strides."""
  rng = np.random.default_rng(0)
  return {
    "matrix": (rng.normal(size=(3, 5)) * 3).astype(dtype),
    "scalar": np.array(1, dtype),
    "empty": np.zeros((0, 4), dtype),
    "transposed": (rng.normal(size=(4, 3)) * 3).astype(dtype).T,
    "reversed": np.ones((1, 2), dtype)[::-1],
    "é.0": np.zeros((2, 1, 2), dtype),
  }


def assert_same(found, expected) -> None:
  assert found.dtype == expected.dtype
  assert found.shape == expected.shape
  assert found.tobytes() == expected.tobytes()


def read_all(value):
  """Reads every tensor in a value."""
  if isinstance(value, pth.Tensor):
    return value.read()
  if isinstance(value, dict):
    return {k: read_all(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(map(read_all, value))
  return value


def refusal(path, read=pth.read) -> str:
  """The message of a refused file, which names its path."""
  with pytest.raises(ValueError) as error:
    read_all(read(path))
  assert str(path) in str(error.value)
  return str(error.value)
