"""The table of a state's sharding. `tests/distributed` compares real bytes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.configs import small_config

from lumina_jax.parallel.mesh import AXES
from lumina_jax.parallel.sharding_table import (
  Group,
  group_parameters,
  sharding_table,
  tree_bytes,
)
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import abstract_state


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


def test_the_table_is_short_and_its_lines_sum_up():
  *lines, rule, parameters, ema, optimizer, state = sharding_table(
    *abstract_parts(fsdp=4, tensor=2)
  ).splitlines()
  assert len(lines) <= 10 and set(rule) == {"-"}
  assert lines[0].endswith("MiB per device   in total")
  assert all(len(line) == len(rule) for line in lines)
  numbers = [
    [float(word) for word in line.split()[-2:]]
    for line in (*lines[1:], parameters, ema, optimizer, state)
  ]
  groups, (of_params, of_ema, of_moments, total) = numbers[:-4], numbers[-4:]
  for column in range(2):
    assert sum(row[column] for row in groups) == pytest.approx(
      of_params[column], abs=0.06
    )
    assert of_ema[column] == of_params[column]
    parts = of_params[column] + of_ema[column] + of_moments[column]
    assert total[column] == pytest.approx(parts, abs=0.03)


def test_siblings_of_one_layout_form_a_group():
  kernel = leaf((6, 64, 8, 16), None, ("fsdp", "context"), "tensor", None)
  attention = {name: {"kernel": kernel} for name in ("query", "key")}
  attention["out"] = {"kernel": leaf((6, 8, 16, 64), None, "tensor")}
  attention["norm"] = {"scale": leaf((6, 64), dtype=jnp.bfloat16)}
  found = group_parameters({"blocks": {"attention": attention}})
  kernel_bytes = 4 * 6 * 64 * 8 * 16
  assert found == [
    Group(
      "blocks/attention/out",
      "f32[6, 8/tensor, 16, 64]",
      kernel_bytes // 2,
      kernel_bytes,
      1,
    ),
    Group(
      "blocks/attention/{key,query}",
      "f32[6, 64/fsdp/context, 8/tensor, 16]",
      2 * kernel_bytes // 16,
      2 * kernel_bytes,
      2,
    ),
    Group("blocks/attention/norm/scale", "bf16[6, 64]", 768, 768, 1),
  ]


def test_small_groups_share_a_line():
  sizes = range(100, 140)
  params = {f"layer_{n}": {"kernel": leaf((n, 4), None, "fsdp")} for n in sizes}
  table = sharding_table(params, params, params)
  assert len(table.splitlines()) == 15
  assert "layer_139  " in table and "32 smaller" in table


def test_an_axis_of_one_device_is_not_shown():
  (group,) = group_parameters({"a": {"kernel": leaf((8, 4), "data", "fsdp")}})
  assert group.layout == "f32[8, 4/fsdp]"


def test_large_states_are_shown_in_gibibytes():
  params = {"a": {"kernel": leaf((2**20, 2**14), "fsdp")}}
  lines = sharding_table(params, params, params).splitlines()
  assert "GiB per device" in lines[0]
  assert lines[1].split()[-2:] == ["16.00", "64.00"]


def test_an_unsharded_state_takes_two_lines():
  parts = abstract_parts()
  local, total = (sum(n) for n in zip(*map(tree_bytes, parts), strict=True))
  lines = sharding_table(*parts).splitlines()
  assert local == total and len(lines) == 2
  assert lines[0] == (
    f"state: {total / 2**20:.1f} MiB on each device, nothing is sharded"
  )
