"""Reads the pickle of a PyTorch file without running what it asks for.

A pickle names functions and has them called. Here a name is one of a few that
build tensors and plain containers, for which something inert stands in, or the
file is refused.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

PathLike = str | os.PathLike[str]
# PyTorch's name of a type of numbers -> ours, the class of its storage.
TYPES: dict[str, tuple[np.dtype, str]] = {
  "float64": (np.dtype(np.float64), "torch.DoubleStorage"),
  "float32": (np.dtype(np.float32), "torch.FloatStorage"),
  "float16": (np.dtype(np.float16), "torch.HalfStorage"),
  "bfloat16": (np.dtype(ml_dtypes.bfloat16), "torch.BFloat16Storage"),
  "int64": (np.dtype(np.int64), "torch.LongStorage"),
  "int32": (np.dtype(np.int32), "torch.IntStorage"),
  "int16": (np.dtype(np.int16), "torch.ShortStorage"),
  "int8": (np.dtype(np.int8), "torch.CharStorage"),
  "uint8": (np.dtype(np.uint8), "torch.ByteStorage"),
  "bool": (np.dtype(np.bool_), "torch.BoolStorage"),
}
LEAVES = (type(None), bool, int, float, str)
WAY_OUT = (
  "If you trust it, load it with torch and save its tensors (or plain values) "
  "alone, torch.save({k: v for k, v in state_dict.items()}, path), or convert "
  "them to safetensors"
)


class Unsafe(ValueError):
  """A pickle that asks for more than tensors and plain containers."""


class Storage(NamedTuple):
  """A run of numbers that tensors look into."""

  key: str
  dtype: np.dtype
  numel: int


class _StorageClass(NamedTuple):
  dtype: np.dtype


class _Function:
  """Stands in for a function; unlike a real one, nobody can set anything."""

  __slots__ = ("_call",)

  def __init__(self, call: Callable[..., Any]):
    self._call = call

  def __call__(self, *args) -> Any:
    return self._call(*args)

  def __setstate__(self, state: Any) -> None:
    raise ValueError("it changes a function")


class _Dict(dict):
  """Stands in for OrderedDict, whose attributes (versions) are dropped."""

  __slots__ = ()

  def __setstate__(self, state: Any) -> None:
    pass

  def __reduce__(self):
    return dict, (dict(self),)  # A copy is anybody's.


class _Namespace(dict):
  """Stands in for argparse.Namespace: its attributes are its items."""

  __slots__ = ()

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.update(state)


class _Unpickler(pickle.Unpickler):
  def __init__(self, path: PathLike, data: bytes, named: dict[str, Any]):
    super().__init__(io.BytesIO(data))
    self.path, self.named = path, named

  def find_class(self, module: str, name: str) -> Any:
    module = "builtins" if module == "__builtin__" else module  # Python 2's.
    if f"{module}.{name}" not in self.named:
      raise Unsafe(
        f"{self.path} is refused: it asks for {module}.{name}, which is not "
        "among the tensors and plain values read here, and to load anything "
        f"else would run code. {WAY_OUT}"
      )
    return self.named[f"{module}.{name}"]

  def persistent_load(self, pid: Any) -> Storage:
    match pid:
      case ("storage", _StorageClass(dtype), str(key), str(), int(numel)):
        return Storage(key, dtype, numel)
    raise ValueError("it refers to something other than a storage")


def load(
  path: PathLike,
  data: bytes,
  tensor: Callable[[Storage, Any, Any, Any], Any],
  namespace: bool = False,
) -> Any:
  """The object that a pickle stands for.

  Args:
    path: the file it is from, for messages.
    data: the pickle.
    tensor: makes a tensor of a storage, an offset, a shape and strides, which
      are as the file says: it is to check them.
    namespace: whether argparse.Namespace may occur.

  Raises:
    Unsafe: if it asks for anything but tensors and plain containers.
    ValueError: if it is no pickle that PyTorch writes.
  """
  named = _PLAIN | _tensor_functions(tensor)
  if namespace:
    named["argparse.Namespace"] = _Namespace
  try:
    _scan(data)
    return _Unpickler(path, data, named).load()
  except Unsafe:
    raise
  except Exception as error:  # A malformed pickle may raise just about any.
    raise ValueError(
      f"{path} cannot be read: {error}. Fetch it again, or write it again with "
      "torch.save"
    ) from error


def check(
  path: PathLike, value: Any, leaves: tuple[type, ...] = LEAVES
) -> None:
  """Raises Unsafe if there is anything but containers of `leaves` in a value.

  It takes no recursion, and each container once, since a few bytes of a pickle
  can nest or repeat one without end.
  """
  seen, todo = set(), [value]
  while todo:
    item = todo.pop()
    kind = type(item)
    if kind in leaves or id(item) in seen:
      continue
    seen.add(id(item))
    if kind in (dict, _Dict):
      todo.extend(itertools.chain(item.keys(), item.values()))
    elif kind in (list, tuple, set, frozenset):
      todo.extend(item)
    else:
      raise Unsafe(
        f"{path} is refused: it holds a {kind.__name__.lstrip('_')}, where "
        f"there may be {', '.join(leaf.__name__ for leaf in leaves)} and plain "
        f"containers of these. {WAY_OUT}"
      )


def as_dict(path: PathLike, value: Any) -> dict[str, Any]:
  """What a namespace, or a plain dict, holds.

  Raises:
    Unsafe: naming the value that is not plain.
    ValueError: if it is neither.
  """
  if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
    raise ValueError(
      f"{path} holds no argparse.Namespace and no dict of names; save one with "
      "torch.save(argparse.Namespace(**values), path)"
    )
  for name, item in value.items():
    check(f"{path}: {name}", item)
  return dict(value)


def _scan(data: bytes) -> None:
  """Refuses what the unpickler would act on before it asks us."""
  for code, arg, _ in pickletools.genops(data):
    # The memo grows to the number a pickle says: gigabytes for five bytes.
    if code.name.endswith("PUT") and int(arg) > len(data):
      raise ValueError("it numbers more objects than it can hold")
    # Objects that this process has registered under a number.
    if code.name.startswith("EXT"):
      raise ValueError("it uses the extension registry")


def _tensor_functions(tensor: Callable[..., Any]) -> dict[str, _Function]:
  def rebuild(storage, offset, shape, strides, grad=0, hooks=0, metadata=None):
    if metadata:
      raise ValueError(
        "a tensor is the negative or conjugate of its numbers; save the result "
        "of its resolve_neg().resolve_conj()"
      )
    return tensor(storage, offset, shape, strides)

  def parameter(data, *_):
    return data

  return {
    f"torch._utils.{name}": _Function(call)
    for name, call in (
      ("_rebuild_tensor", rebuild),
      ("_rebuild_tensor_v2", rebuild),
      ("_rebuild_parameter", parameter),
      ("_rebuild_parameter_with_state", parameter),
    )
  }


def _device(kind: Any, index: Any = None) -> str:
  if type(kind) is not str or type(index) not in (int, type(None)):
    raise ValueError("a device has no proper name")
  return kind if index is None else f"{kind}:{index}"


# Values that pass through: a device and a type of numbers become their names.
_PLAIN: dict[str, Any] = {
  "collections.OrderedDict": _Dict,
  "collections.Counter": _Dict,
  "torch.Size": tuple,
  "torch.device": _Function(_device),
  **{
    f"builtins.{kind.__name__}": kind
    for kind in (bool, dict, float, frozenset, int, list, set, tuple)
  },
  **{f"torch.{name}": f"torch.{name}" for name in TYPES},
  **{name: _StorageClass(dtype) for dtype, name in TYPES.values()},
  "torch.UntypedStorage": _StorageClass(np.dtype(np.uint8)),
  "torch.storage.UntypedStorage": _StorageClass(np.dtype(np.uint8)),
}
