"""The mesh and the rules that place arrays on it."""

import itertools
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from support.configs import fake_devices

from lumina_jax.parallel import mesh as mesh_module
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
  "outer": dict(data=1, fsdp=-1, tensor=2, dcn_data=2),
  "outer_same_axis": dict(data=1, fsdp=4, dcn_fsdp=2),
  "one_process": dict(dcn_data=-1),
  "rest_of_slices": dict(fsdp=2, dcn_data=-1, dcn_fsdp=2),
  "three_slices": dict(dcn_data=3),
  "slice_too_small": dict(data=1, fsdp=8, dcn_data=2),
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
  done = subprocess.run(
    [sys.executable, "-c", CODE, json.dumps(DEGREES)],
    cwd=ROOT,
    env=fake_devices(8),
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
    ("outer", [2, 2, 1, 2]),
    ("outer_same_axis", [1, 8, 1, 1]),
    ("one_process", [8, 1, 1, 1]),
    ("rest_of_slices", [2, 4, 1, 1]),
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
  ("name", "message"),
  [
    ("three_slices", "8 devices do not divide into 3 equal slices"),
    ("slice_too_small", "needs 8 devices, there are 4 in each of 2 slices"),
  ],
)
def test_slices_that_do_not_fit_are_refused(on_eight_devices, name, message):
  assert message in on_eight_devices[name]


@pytest.mark.parametrize(
  "degrees",
  [
    dict(data=0),
    dict(fsdp=-2),
    dict(data=-1, fsdp=-1),
    dict(dcn_tensor=0),
    dict(dcn_data=-1, dcn_fsdp=-1),
  ],
)
def test_senseless_degrees_are_refused(degrees):
  with pytest.raises(ValueError, match="at most one of them -1"):
    make_mesh(MeshConfig(**degrees))


def test_the_mesh_has_automatic_axes():
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  assert mesh.axis_names == AXES
  assert mesh.axis_types == (AxisType.Auto,) * 4
  assert replicated(mesh).is_fully_replicated


class Chip(types.SimpleNamespace):
  """What a layout asks of a TPU chip of a 4 x 4 slice."""

  platform, device_kind, core_on_chip = "tpu", "TPU v6 lite", 0
  __hash__ = object.__hash__


def chips(slices: int) -> list[Chip]:
  coords = list(itertools.product(range(4), range(4), [0]))
  return [
    Chip(id=16 * s + n, slice_index=s, process_index=s, coords=at)
    for s in range(slices)
    for n, at in enumerate(coords)
  ]


@pytest.mark.parametrize(
  ("within", "across"),
  [
    ((1, 4, 1, 4), (2, 1, 1, 1)),
    ((1, 4, 4, 1), (1, 4, 1, 1)),
    ((2, 8, 1, 1), (2, 2, 1, 1)),
    ((1, 16, 1, 1), (1, 1, 1, 1)),
  ],
)
def test_slices_stand_outside_as_jax_lays_them(monkeypatch, within, across):
  devices = chips(math.prod(across))
  degrees = zip((*AXES, *(f"dcn_{a}" for a in AXES)), within + across,
                strict=True)  # fmt: skip
  # A mesh wants real devices; what counts is where they would stand.
  monkeypatch.setattr(mesh_module, "Mesh", lambda grid, *_, **__: grid)
  # Slices may come in any order.
  found = make_mesh(MeshConfig(**dict(degrees)), devices[::-1])
  expected = mesh_utils.create_hybrid_device_mesh(
    within, across, devices, allow_split_physical_axes=True
  )
  slices = np.vectorize(lambda chip: chip.slice_index)
  np.testing.assert_array_equal(slices(found), slices(expected))
  ids = np.vectorize(lambda chip: chip.id)
  np.testing.assert_array_equal(ids(found), ids(expected))


def test_degrees_may_split_what_is_one_axis_of_chips(monkeypatch):
  monkeypatch.setattr(mesh_module, "Mesh", lambda grid, *_, **__: grid)
  found = make_mesh(MeshConfig(data=1, fsdp=8, context=2), chips(1))
  assert found.shape == (1, 8, 2, 1)


@pytest.mark.parametrize(
  ("degrees", "message"),
  [
    (dict(), r"needs 1 slices, there are 2 of 16 devices each"),
    (dict(dcn_data=4), r"'dcn_data': 4.* needs 4 slices, there are 2"),
    (dict(data=3, dcn_fsdp=-1), r"needs 3 devices, there are 16 in each of 2"),
  ],
)
def test_degrees_that_do_not_fit_slices_are_refused(degrees, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(MeshConfig(**degrees), chips(2))


def test_slices_of_unlike_sizes_are_refused():
  with pytest.raises(ValueError, match=r"unlike numbers .*\{0: 16, 1: 15\}"):
    make_mesh(MeshConfig(dcn_data=2), chips(2)[:-1])


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
  match = rf"kernel: .*dimension {size} does not divide .* = {degree} devices"
  with pytest.raises(ValueError, match=match):
    shardings(boxed(shape, ("embed", "heads")), mesh)


def test_fewer_heads_of_keys_than_devices_are_named_with_the_way_out():
  """As 8 of the 2B network with GQA over 16."""
  names = ("embed", "heads", "head_dim")
  tree = {"attention": {"key": boxed((64, 8, 4), names)}}
  with pytest.raises(ValueError) as error:
    shardings(tree, abstract(tensor=16))
  message = str(error.value)
  assert message.startswith("attention/key/kernel: dimension 8 does not divide")
  assert "('tensor',) = 16 devices" in message
  assert "keys and values may have fewer" in message
  assert "so that tensor divides 8, for instance 8" in message


@pytest.mark.parametrize(
  "names", [("embed", "text"), ("heads", "mlp"), ("mlp", None, "modulation")]
)
def test_a_mesh_axis_named_twice_is_refused(names):
  mesh = abstract(fsdp=2, tensor=2)
  with pytest.raises(ValueError, match=r"kernel: .*name a mesh axis twice"):
    shardings(boxed((8,) * len(names), names), mesh)


def test_every_rule_names_axes_of_the_mesh():
  names = [name for name, _ in RULES]
  assert len(set(names)) == len(names)
  assert all(set(mesh_axes(name)) <= set(AXES) for name in names)
  assert mesh_axes(None) == ()
