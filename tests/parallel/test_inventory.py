"""What lies where: the table agrees with what the devices hold."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.configs import ROOT, fake_devices, small_config

from lumina_jax.parallel import inventory
from lumina_jax.parallel.mesh import AXES
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import abstract_state

CODE = """
import json, jax
from support.configs import small_config
from lumina_jax.parallel import inventory
from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state

run = small_config()
mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
state = create_state(run.network, make_optimizer(run.optimizer, 9), mesh, 0)

def held(tree, device):
  shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
  return sum(s.data.nbytes for s in shards if s.device == device)

parts = (state.params, state.ema, state.opt_state)
print(json.dumps(dict(
  held=[[held(part, d) for d in jax.devices()] for part in parts],
  weighed=[inventory.weigh(part) for part in parts],
  table=inventory.describe(*parts),
)))
"""


@pytest.fixture(scope="module")
def on_eight_devices():
  path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
  done = subprocess.run(
    [sys.executable, "-c", CODE],
    cwd=ROOT,
    env=fake_devices(8) | {"PYTHONPATH": path},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def abstract_parts(fsdp=1, context=1, tensor=1):
  run = small_config()
  mesh = AbstractMesh(
    (1, fsdp, context, tensor), AXES, axis_types=(AxisType.Auto,) * 4
  )
  state = abstract_state(run.network, make_optimizer(run.optimizer, 9), mesh)
  return state.params, state.ema, state.opt_state


def leaf(shape, *axes, dtype=jnp.float32):
  mesh = AbstractMesh((1, 4, 2, 2), AXES, axis_types=(AxisType.Auto,) * 4)
  where = NamedSharding(mesh, P(*axes))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def test_bytes_are_those_that_each_device_holds(on_eight_devices):
  for held, (local, whole) in zip(
    on_eight_devices["held"], on_eight_devices["weighed"], strict=True
  ):
    assert held == [local] * 8
    assert local < whole < 8 * local


def test_a_state_can_be_weighed_before_it_exists(on_eight_devices):
  parts = abstract_parts(fsdp=4, tensor=2)
  weighed = [list(inventory.weigh(part)) for part in parts]
  assert weighed == on_eight_devices["weighed"]
  assert inventory.describe(*parts) == on_eight_devices["table"]


def test_the_table_is_short_and_its_lines_sum_up(on_eight_devices):
  *lines, rule, parameters, average, optimizer, state = on_eight_devices[
    "table"
  ].splitlines()
  assert len(lines) <= 10 and set(rule) == {"-"}
  assert lines[0].split()[-4:] == ["MiB", "each", "in", "all"]
  assert all(len(line) == len(rule) for line in lines)
  numbers = [
    [float(word) for word in line.split()[-2:]]
    for line in (*lines[1:], parameters, average, optimizer, state)
  ]
  groups, (of_params, of_ema, of_moments, total) = numbers[:-4], numbers[-4:]
  for column in range(2):
    assert sum(row[column] for row in groups) == pytest.approx(
      of_params[column], abs=0.06
    )
    assert of_ema[column] == of_params[column]
    parts = of_params[column] + of_ema[column] + of_moments[column]
    assert total[column] == pytest.approx(parts, abs=0.03)


def test_siblings_of_one_layout_share_a_line():
  kernel = leaf((6, 64, 8, 16), None, ("fsdp", "context"), "tensor", None)
  attention = {name: {"kernel": kernel} for name in ("query", "key")}
  attention["out"] = {"kernel": leaf((6, 8, 16, 64), None, "tensor")}
  attention["norm"] = {"scale": leaf((6, 64), dtype=jnp.bfloat16)}
  found = inventory.rows({"blocks": {"attention": attention}})
  kernel_bytes = 4 * 6 * 64 * 8 * 16
  assert found == [
    inventory.Row(
      "blocks/attention/out",
      "f32[6, 8/tensor, 16, 64]",
      kernel_bytes // 2,
      kernel_bytes,
      1,
    ),
    inventory.Row(
      "blocks/attention/{key,query}",
      "f32[6, 64/fsdp/context, 8/tensor, 16]",
      2 * kernel_bytes // 16,
      2 * kernel_bytes,
      2,
    ),
    inventory.Row("blocks/attention/norm/scale", "bf16[6, 64]", 768, 768, 1),
  ]


def test_many_groups_are_one_line():
  sizes = range(100, 140)
  params = {f"layer_{n}": {"kernel": leaf((n, 4), None, "fsdp")} for n in sizes}
  table = inventory.describe(params, params, params)
  assert len(table.splitlines()) == 15
  assert "layer_139  " in table and "32 smaller" in table


def test_an_axis_of_one_device_cuts_nothing():
  (row,) = inventory.rows({"a": {"kernel": leaf((8, 4), "data", "fsdp")}})
  assert row.layout == "f32[8, 4/fsdp]"


def test_large_states_are_told_in_gibibytes():
  params = {"a": {"kernel": leaf((2**20, 2**14), "fsdp")}}
  lines = inventory.describe(params, params, params).splitlines()
  assert "GiB each" in lines[0]
  assert lines[1].split()[-2:] == ["16.00", "64.00"]


def test_where_nothing_is_sharded_two_lines_do():
  parts = abstract_parts()
  local, whole = (
    sum(n) for n in zip(*map(inventory.weigh, parts), strict=True)
  )
  lines = inventory.describe(*parts).splitlines()
  assert local == whole and len(lines) == 2
  assert lines[0] == (
    f"state: {whole / 2**20:.1f} MiB on each device, nothing is sharded"
  )
