"""Reads and writes parameters in orbax checkpoints, one array at a time."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint import type_handlers

Path = tuple[str, ...]
Shape = tuple[int, ...]
CHUNK_BYTES = 64 << 20  # Orbax encodes, and readers decode, this much at once.


class OrbaxArrays:
  """The arrays of an orbax checkpoint, or of one subtree of it.

  Attributes:
    shapes: Shapes of the arrays by path below the subtree.
  """

  def __init__(self, folder: pathlib.Path, subtree: Path = ()):
    """Reads the shapes.

    Args:
      folder: the orbax checkpoint.
      subtree: keys that lead to the subtree.

    Raises:
      ValueError: if the folder is not an orbax checkpoint with this subtree.
    """
    self._folder, self._subtree = folder.absolute(), subtree
    self._handler = ocp.PyTreeCheckpointHandler()
    with _reading(folder):
      tree = self._handler.metadata(self._folder).tree
      for key in subtree:
        tree = tree[key]
    flat = traverse_util.flatten_dict(tree)
    self.shapes = {path: tuple(x.shape) for path, x in flat.items()}

  def read(self, path: Path, dtype: np.dtype | None = None) -> np.ndarray:
    """Reads one array; without a dtype, as it is stored.

    Raises:
      ValueError: if it cannot be read.
    """
    path = (*self._subtree, *path)
    restore = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
      item=traverse_util.unflatten_dict({path: 0}),
      restore_args=traverse_util.unflatten_dict({path: restore}),
      partial_restore=True,
    )
    with _reading(self._folder):
      tree = self._handler.restore(self._folder, args=args)
    array = traverse_util.flatten_dict(tree)[path]
    return array if dtype is None else array.astype(dtype, copy=False)


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # Orbax raises many types for broken files.
    raise ValueError(f"{folder} cannot be read: {error}") from error


def write(
  folder: pathlib.Path,
  shapes: Mapping[Path, Shape],
  dtype: np.dtype,
  read: Callable[[Path], np.ndarray],
) -> None:
  """Writes an orbax checkpoint.

  Args:
    folder: the folder to write.
    shapes: shapes of all arrays by path.
    dtype: dtype of all arrays.
    read: returns one array; called when orbax writes it.
  """
  leaves = {
    path: _LazyArray(shape, dtype, lambda path=path: read(path))
    for path, shape in shapes.items()
  }
  chunks = ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
  # OCDBT would keep each array in memory a second time until the commit.
  handler = ocp.PyTreeCheckpointHandler(
    type_handler_registry=type_handlers.create_type_handler_registry(
      (_LazyArray, _LazyArrayHandler())
    ),
    use_ocdbt=False,
  )
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(
      folder.absolute(),
      args=ocp.args.PyTreeSave(
        traverse_util.unflatten_dict(leaves),
        save_args=traverse_util.unflatten_dict(dict.fromkeys(shapes, chunks)),
      ),
    )


@dataclasses.dataclass(frozen=True)
class _LazyArray:
  """A leaf of the tree to save, read when orbax writes it."""

  shape: Shape
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize


class _LazyArrayHandler(type_handlers.NumpyHandler):
  """Reads and writes one array after the other."""

  def __init__(self):
    super().__init__(deepcopy_host_arrays=False)

  async def serialize(self, values, infos, args=None):
    for value, info, arg in zip(values, infos, args, strict=True):
      (written,) = await super().serialize([value.read()], [info], [arg])
      written.result()
      del written  # It holds the array.
    return []
