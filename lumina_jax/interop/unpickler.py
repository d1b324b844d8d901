"""Reads the pickle of a PyTorch file without running code from it.

A pickle names functions and calls them. Here only the few names that build
tensors and plain containers are known, and each has an inert stand-in. A file
that uses any other name is refused.
"""

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
# PyTorch's name of a dtype -> our dtype and PyTorch's storage class.
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
  "If you trust the file, load it with torch and save only its tensors (or "
  "plain values), torch.save({k: v for k, v in state_dict.items()}, path), or "
  "convert them to safetensors"
)


class Unsafe(ValueError):
  """A pickle that holds more than tensors and plain containers."""


class Storage(NamedTuple):
  """A flat array that tensors are views of.

  Attributes:
    key: Name of its record in the file.
    dtype: Dtype of its elements.
    numel: Number of elements.
  """

  key: str
  dtype: np.dtype
  numel: int


class _StorageClass(NamedTuple):
  dtype: np.dtype


class _Function:
  """Stands in for a function; a pickle cannot set its attributes."""

  __slots__ = ("_call",)

  def __init__(self, call: Callable[..., Any]):
    self._call = call

  def __call__(self, *args) -> Any:
    return self._call(*args)

  def __setstate__(self, state: Any) -> None:
    raise ValueError("it sets attributes of a function")


class _Dict(dict):
  """Stands in for OrderedDict; drops its attributes (versions)."""

  __slots__ = ()

  def __setstate__(self, state: Any) -> None:
    pass

  def __reduce__(self):
    return dict, (dict(self),)  # A copy is a plain dict.


class _Namespace(dict):
  """Stands in for argparse.Namespace; its attributes become items."""

  __slots__ = ()

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.update(state)


class _Unpickler(pickle.Unpickler):
  def __init__(self, path: PathLike, data: bytes, named: dict[str, Any]):
    super().__init__(io.BytesIO(data))
    self.path, self.named = path, named

  def find_class(self, module: str, name: str) -> Any:
    # Python 2 called it __builtin__.
    module = "builtins" if module == "__builtin__" else module
    if f"{module}.{name}" not in self.named:
      raise Unsafe(
        f"{self.path} is refused: it uses {module}.{name}. Only tensors and "
        f"plain values are loaded, since anything else runs code. {WAY_OUT}"
      )
    return self.named[f"{module}.{name}"]

  def persistent_load(self, pid: Any) -> Storage:
    match pid:
      case ("storage", _StorageClass(dtype), str(key), str(), int(numel)):
        return Storage(key, dtype, numel)
    raise ValueError("it refers to an object that is not a storage")


def load(
  path: PathLike,
  data: bytes,
  tensor: Callable[[Storage, Any, Any, Any], Any],
  namespace: bool = False,
) -> Any:
  """Loads the object of a pickle.

  Args:
    path: the file, for messages.
    data: the pickle.
    tensor: makes a tensor from a storage, an offset, a shape and strides. These
      come unchecked from the file; `tensor` has to check them.
    namespace: whether argparse.Namespace may occur.

  Raises:
    Unsafe: if it uses anything but tensors and plain containers.
    ValueError: if it is not a pickle that PyTorch writes.
  """
  named = _PLAIN | _tensor_functions(tensor)
  if namespace:
    named["argparse.Namespace"] = _Namespace
  try:
    _scan(data)
    return _Unpickler(path, data, named).load()
  except Unsafe:
    raise
  except Exception as error:  # A malformed pickle may raise any type.
    raise ValueError(
      f"{path} cannot be read: {error}. Download it again, or write it again "
      "with torch.save"
    ) from error


def check(
  path: PathLike, value: Any, leaves: tuple[type, ...] = LEAVES
) -> None:
  """Checks that a value consists of plain containers of `leaves`.

  Visits each container once and does not recurse: a few bytes of a pickle can
  nest or repeat a container without end.

  Raises:
    Unsafe: naming the first other type.
  """
  visited, todo = set(), [value]
  while todo:
    item = todo.pop()
    kind = type(item)
    if kind in leaves or id(item) in visited:
      continue
    visited.add(id(item))
    if kind in (dict, _Dict):
      todo.extend(itertools.chain(item.keys(), item.values()))
    elif kind in (list, tuple, set, frozenset):
      todo.extend(item)
    else:
      raise Unsafe(
        f"{path} is refused: it holds a {kind.__name__.lstrip('_')}; supported "
        f"are {', '.join(leaf.__name__ for leaf in leaves)} and plain "
        f"containers of these. {WAY_OUT}"
      )


def as_dict(path: PathLike, value: Any) -> dict[str, Any]:
  """The items of a namespace or a plain dict.

  Raises:
    Unsafe: naming a value that is not plain.
    ValueError: if the value is neither a namespace nor a dict.
  """
  if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
    raise ValueError(
      f"{path} holds no argparse.Namespace and no dict with string keys; save "
      "one with torch.save(argparse.Namespace(**values), path)"
    )
  for name, item in value.items():
    check(f"{path}: {name}", item)
  return dict(value)


def _scan(data: bytes) -> None:
  """Refuses opcodes that the unpickler handles without asking us."""
  for code, arg, _ in pickletools.genops(data):
    # The memo grows to any number a pickle states: gigabytes for five bytes.
    if code.name.endswith("PUT") and int(arg) > len(data):
      raise ValueError("its memo is larger than the pickle")
    # Objects that this process has registered in copyreg.
    if code.name.startswith("EXT"):
      raise ValueError("it uses the extension registry")


def _tensor_functions(tensor: Callable[..., Any]) -> dict[str, _Function]:
  def rebuild(storage, offset, shape, strides, grad=0, hooks=0, metadata=None):
    if metadata:
      raise ValueError(
        "a tensor is a lazy negative or conjugate; save "
        "tensor.resolve_neg().resolve_conj()"
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
    raise ValueError("a device has an invalid name")
  return kind if index is None else f"{kind}:{index}"


# Names that may occur; devices and dtypes become their names.
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
