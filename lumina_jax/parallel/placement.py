"""From files to devices, a parameter at a time."""

from __future__ import annotations

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


def place(
  read: Callable[[Path, np.dtype], np.ndarray],
  boxed: Any,
  dtype: np.dtype,
  mesh: Mesh | None = None,
) -> dict[str, Any]:
  """Puts parameters where they belong, one after the other, largest first.

  The host never holds more than one of them beside what lies on its devices.

  Args:
    read: one parameter by its path, in a type of numbers.
    boxed: shapes, boxed with their logical axes: an `init` under
      `jax.eval_shape`.
    dtype: of all of them.
    mesh: where the rules of `parallel.mesh` put them; None = one device.

  Returns:
    The parameters, a nested dict of arrays on the devices.
  """
  shapes = traverse_util.flatten_dict(nn.unbox(boxed))
  if mesh is None:
    device = SingleDeviceSharding(jax.local_devices()[0])
    where = dict.fromkeys(shapes, device)
  else:
    where = traverse_util.flatten_dict(shardings(boxed, mesh))
  placed = {}
  for path in sorted(shapes, key=lambda p: -math.prod(shapes[p].shape)):
    host = read(path, dtype)
    # Each process gives its own devices their parts; `device_put` would compare
    # all of it among all processes first.
    array = jax.make_array_from_callback(
      host.shape, where[path], lambda index, host=host: host[index]
    )
    placed[path] = array.block_until_ready()  # Or several would be under way.
    del array, host
  return traverse_util.unflatten_dict({path: placed[path] for path in shapes})
