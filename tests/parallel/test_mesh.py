"""The mesh and the rules that place arrays on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from lumina_jax.parallel.mesh import (
  AXES,
  RULES,
  MeshConfig,
  make_mesh,
  mesh_axes,
  replicated,
  shardings,
)

ROOT = Path(__file__).parents[2]
DEGREES = {
  "default": {},
  "fsdp": dict(data=1, fsdp=-1),
  "rest": dict(data=-1, fsdp=2, tensor=2),
  "context": dict(data=2, context=-1, tensor=2),
  "none": dict(data=1, fsdp=2, context=2, tensor=2),
  "too_few": dict(data=2, fsdp=2),
  "too_many": dict(data=1, fsdp=16),
  "odd": dict(data=-1, fsdp=3),
  "larger": dict(data=-1, fsdp=16),
}
CODE = """
import json, sys, jax
from lumina_jax.parallel.mesh import MeshConfig, make_mesh
found = {}
for name, degrees in json.loads(sys.argv[1]).items():
  try:
    mesh = make_mesh(MeshConfig(**degrees))
    ids = sorted(device.id for device in mesh.devices.flat)
    found[name] = [*mesh.devices.shape, ids == list(range(8))]
  except ValueError as error:
    found[name] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on_eight_devices():
  """What `make_mesh` gives or raises for each of DEGREES on 8 devices."""
  flags = "--xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, "-c", CODE, json.dumps(DEGREES)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


@pytest.mark.parametrize(
  ("name", "shape"),
  [
    ("default", [8, 1, 1, 1]),
    ("fsdp", [1, 8, 1, 1]),
    ("rest", [2, 2, 1, 2]),
    ("context", [2, 1, 2, 2]),
    ("none", [1, 2, 2, 2]),
  ],
)
def test_minus_1_takes_the_rest_of_the_devices(on_eight_devices, name, shape):
  assert on_eight_devices[name] == [*shape, True]


@pytest.mark.parametrize(
  ("name", "needed"),
  [("too_few", 4), ("too_many", 16), ("odd", 6), ("larger", 16)],
)
def test_degrees_that_do_not_fit_are_refused(on_eight_devices, name, needed):
  message = on_eight_devices[name]
  assert f"needs {needed} devices, there are 8" in message
  assert "config.mesh" in message


@pytest.mark.parametrize(
  "degrees",
  [dict(data=0), dict(fsdp=-2), dict(data=-1, fsdp=-1)],
)
def test_senseless_degrees_are_refused(degrees):
  with pytest.raises(ValueError, match="at most one of them -1"):
    make_mesh(MeshConfig(**degrees))


def test_the_mesh_has_automatic_axes():
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  assert mesh.axis_names == AXES
  assert mesh.axis_types == (AxisType.Auto,) * 4
  assert replicated(mesh).is_fully_replicated


def abstract(data=1, fsdp=1, context=1, tensor=1):
  return AbstractMesh(
    (data, fsdp, context, tensor), AXES, axis_types=(AxisType.Auto,) * 4
  )


def boxed(shape, names):
  return {"kernel": nn.LogicallyPartitioned(jnp.zeros(shape), names)}


@pytest.mark.parametrize(
  ("shape", "names", "spec"),
  [
    ((8, 4), ("embed", "heads"), P(("fsdp", "context"), "tensor")),
    ((8, 4, 3), ("embed", "heads", "head_dim"),
     P(("fsdp", "context"), "tensor", None)),
    ((5, 8, 4), ("layers", "mlp", "embed"),
     P(None, "tensor", ("fsdp", "context"))),
    ((7,), ("norm",), P(None)),
    ((7, 8), (None, "text"), P(None, ("fsdp", "context"))),
  ],
)  # fmt: skip
def test_parameters_lie_where_the_rules_say(shape, names, spec):
  mesh = abstract(fsdp=2, context=2, tensor=2)
  found = shardings(boxed(shape, names), mesh)["kernel"]
  assert found.mesh == mesh
  assert found.spec == spec


@pytest.mark.parametrize(
  ("shape", "size", "degree"), [((6, 4), 6, 4), ((8, 3), 3, 2)]
)
def test_a_dimension_that_does_not_divide_is_refused(shape, size, degree):
  mesh = abstract(fsdp=2, context=2, tensor=2)
  match = rf"'kernel'.*dimension {size} does not divide .* = {degree} devices"
  with pytest.raises(ValueError, match=match):
    shardings(boxed(shape, ("embed", "heads")), mesh)


@pytest.mark.parametrize(
  "names", [("embed", "text"), ("heads", "mlp"), ("mlp", None, "modulation")]
)
def test_a_mesh_axis_named_twice_is_refused(names):
  mesh = abstract(fsdp=2, tensor=2)
  with pytest.raises(ValueError, match=r"'kernel'.*name a mesh axis twice"):
    shardings(boxed((8,) * len(names), names), mesh)


def test_every_rule_names_axes_of_the_mesh():
  names = [name for name, _ in RULES]
  assert len(set(names)) == len(names)
  assert all(set(mesh_axes(name)) <= set(AXES) for name in names)
  assert mesh_axes(None) == ()
