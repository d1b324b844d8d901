"""The mesh and the rules that place arrays on it."""

import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from lumina_jax.parallel import mesh as mesh_module
from lumina_jax.parallel.mesh import (
  AXES,
  RULES,
  MeshConfig,
  make_mesh,
  mesh_axes,
  parse_mesh,
  replicated,
  shardings,
)


class FakeDevice(types.SimpleNamespace):
  """The attributes of a device that a layout depends on."""

  platform, device_kind, core_on_chip = "tpu", "TPU v6 lite", 0
  __hash__ = object.__hash__


def tpus(slices: int) -> list[FakeDevice]:
  """Slices of 4 x 4 chips."""
  coords = list(itertools.product(range(4), range(4), [0]))
  return [
    FakeDevice(id=16 * s + n, slice_index=s, process_index=s, coords=at)
    for s in range(slices)
    for n, at in enumerate(coords)
  ]


def cpus(processes: int = 1) -> list[FakeDevice]:
  """Eight devices."""
  return [
    FakeDevice(
      id=n, process_index=n * processes // 8, platform="cpu", device_kind="cpu"
    )
    for n in range(8)
  ]


@pytest.fixture
def grid(monkeypatch):
  """`make_mesh` as an array of devices, since `Mesh` needs real ones."""
  monkeypatch.setattr(mesh_module, "Mesh", lambda devices, *_, **__: devices)
  return lambda devices, **degrees: make_mesh(MeshConfig(**degrees), devices)


@pytest.mark.parametrize(
  ("degrees", "shape"),
  [
    (dict(), (8, 1, 1, 1)),
    (dict(data=1, fsdp=-1), (1, 8, 1, 1)),
    (dict(data=-1, fsdp=2, tensor=2), (2, 2, 1, 2)),
    (dict(data=2, context=-1, tensor=2), (2, 1, 2, 2)),
    (dict(data=1, fsdp=2, context=2, tensor=2), (1, 2, 2, 2)),
    (dict(data=1, fsdp=-1, tensor=2, dcn_data=2), (2, 2, 1, 2)),
    (dict(data=1, fsdp=4, dcn_fsdp=2), (1, 8, 1, 1)),
    (dict(dcn_data=-1), (8, 1, 1, 1)),
    (dict(fsdp=2, dcn_data=-1, dcn_fsdp=2), (2, 4, 1, 1)),
  ],
)
def test_minus_1_takes_the_rest_of_the_devices(grid, degrees, shape):
  found = grid(cpus(), **degrees)
  assert found.shape == shape
  assert sorted(device.id for device in found.flat) == list(range(8))


def test_dcn_minus_1_is_one_group_per_process(grid):
  found = grid(cpus(processes=4)[::-1], dcn_data=-1, data=1, fsdp=-1)
  process = np.vectorize(lambda device: device.process_index)
  assert process(found[:, :, 0, 0]).tolist() == [[i, i] for i in range(4)]


@pytest.mark.parametrize(
  ("devices", "degrees", "message"),
  [
    (cpus(), dict(data=2, fsdp=2), "needs 4 devices, there are 8; set config"),
    (cpus(), dict(data=1, fsdp=16), "needs 16 devices, there are 8"),
    (cpus(), dict(data=-1, fsdp=3), "needs 6 devices, there are 8"),
    (cpus(), dict(data=-1, fsdp=16), "needs 16 devices, there are 8"),
    (cpus(), dict(dcn_data=3), "8 devices do not divide into 3 equal slices"),
    (cpus(), dict(data=1, fsdp=8, dcn_data=2), "are 4 in each of 2 slices"),
    (cpus(), dict(data=0), "at most one of them -1"),
    (cpus(), dict(fsdp=-2), "at most one of them -1"),
    (cpus(), dict(data=-1, fsdp=-1), "at most one of them -1"),
    (cpus(), dict(dcn_tensor=0), "at most one of them -1"),
    (cpus(), dict(dcn_data=-1, dcn_fsdp=-1), "at most one of them -1"),
    (tpus(2), dict(), "needs 1 slices, there are 2 of 16 devices each"),
    (tpus(2), dict(dcn_data=4), "'dcn_data': 4.* 4 slices, there are 2"),
    (tpus(2), dict(data=3, dcn_fsdp=-1), "3 devices, there are 16 in each"),
    (tpus(2)[:-1], dict(dcn_data=2), r"different numbers .*\{0: 16, 1: 15\}"),
  ],
)
def test_degrees_that_do_not_fit_are_refused(devices, degrees, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(MeshConfig(**degrees), devices)


def test_flags_are_parsed():
  assert parse_mesh("fsdp=4, tensor=2") == MeshConfig(data=1, fsdp=4, tensor=2)
  assert parse_mesh("data=-1") == MeshConfig(data=-1)


@pytest.mark.parametrize(
  "text", ["", "dta=3", "data", "data=0", "data=-2", "data=x", "fsdp=2,fsdp=2"]
)
def test_bad_flags_are_refused(text):
  with pytest.raises(ValueError, match=r"is not one of data=N, fsdp=N"):
    parse_mesh(text)


def test_the_mesh_has_automatic_axes():
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  assert mesh.axis_names == AXES
  assert mesh.axis_types == (AxisType.Auto,) * 4
  assert replicated(mesh).is_fully_replicated


@pytest.mark.parametrize(
  ("within", "across"),
  [
    ((1, 4, 1, 4), (2, 1, 1, 1)),
    ((1, 4, 4, 1), (1, 4, 1, 1)),
    ((2, 8, 1, 1), (2, 2, 1, 1)),
    ((1, 16, 1, 1), (1, 1, 1, 1)),
  ],
)
def test_slices_are_outermost_as_in_jax(grid, within, across):
  devices = tpus(math.prod(across))
  names = *AXES, *(f"dcn_{axis}" for axis in AXES)
  degrees = dict(zip(names, within + across, strict=True))
  found = grid(devices[::-1], **degrees)  # Slices may come in any order.
  expected = mesh_utils.create_hybrid_device_mesh(
    within, across, devices, allow_split_physical_axes=True
  )
  slices = np.vectorize(lambda chip: chip.slice_index)
  np.testing.assert_array_equal(slices(found), slices(expected))
  ids = np.vectorize(lambda chip: chip.id)
  np.testing.assert_array_equal(ids(found), ids(expected))


def test_degrees_can_split_an_axis_of_chips(grid):
  found = grid(tpus(1), data=1, fsdp=8, context=2)
  assert found.shape == (1, 8, 2, 1)


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
def test_parameters_are_sharded_by_the_rules(shape, names, spec):
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


def test_too_few_kv_heads_are_named_with_the_way_out():
  """8 kv heads, as in the 2B network with GQA, over 16 devices."""
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
