"""Where parameters lie on devices, and how they get there, one at a time."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh, SingleDeviceSharding

from lumina_jax.parallel.mesh import shardings

Path = tuple[str, ...]


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """A tree of shapes, with the shardings of a tree like it."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def abstract_params(boxed: Any, mesh: Mesh | None) -> Any:
  """Shapes and shardings of parameters.

  Args:
    boxed: shapes, boxed with logical axes: `jax.eval_shape` of an `init`.
    mesh: shards them by the rules of `parallel.mesh`; None = one device.

  Raises:
    ValueError: if the parameters do not divide over the mesh.
  """
  shapes = nn.unbox(boxed)
  if mesh is not None:
    return with_shardings(shapes, shardings(boxed, mesh))
  device = SingleDeviceSharding(jax.local_devices()[0])
  return with_shardings(shapes, jax.tree.map(lambda _: device, shapes))


def place(
  read: Callable[[Path, np.dtype], np.ndarray],
  boxed: Any,
  dtype: np.dtype,
  mesh: Mesh | None = None,
) -> dict[str, Any]:
  """Reads and shards parameters one by one, the largest first.

  The host holds one parameter at most, beside those on its devices.

  Args:
    read: returns one parameter by path and dtype.
    boxed: shapes, boxed with logical axes: `jax.eval_shape` of an `init`.
    dtype: dtype of all parameters.
    mesh: shards them by the rules of `parallel.mesh`; None = one device.

  Returns:
    The parameters, a nested dict of arrays on the devices.
  """
  shapes = traverse_util.flatten_dict(abstract_params(boxed, mesh))
  placed = {}
  for path in sorted(shapes, key=lambda p: -math.prod(shapes[p].shape)):
    host = read(path, dtype)
    # Each process places its own shards. `device_put` would first compare the
    # whole array among all processes.
    array = jax.make_array_from_callback(
      host.shape, shapes[path].sharding, lambda index, host=host: host[index]
    )
    # Without blocking, several host arrays would be alive at once.
    placed[path] = array.block_until_ready()
    del array, host
  return traverse_util.unflatten_dict({path: placed[path] for path in shapes})
