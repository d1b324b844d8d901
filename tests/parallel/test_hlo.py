"""Collectives and kernels in the text of compiled programs."""

import json
import subprocess
import sys

import pytest
from support.configs import ROOT, fake_devices

from lumina_jax.parallel.hlo import Hlo, Traffic

# Nested loops on 2 x 4 devices, a row of 32 float32 = 128 bytes each.
CODE = """
import json, jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from lumina_jax.parallel.hlo import Hlo
mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

def program(x, w):
  def outer(x, w):
    def inner(x, _):
      return 0.5 * jax.lax.psum(x, "b"), None
    x, _ = jax.lax.scan(inner, x, None, length=3)
    x = jax.lax.ppermute(x, "a", [(0, 1), (1, 0)])
    x += jax.lax.all_gather(x, "b", tiled=True).mean()
    x += jax.lax.psum_scatter(x, "b", tiled=True).mean()
    x += jax.lax.all_to_all(x, "b", 0, 0, tiled=True)
    return x @ w, None
  return jax.lax.scan(outer, x, w)[0]

spread = jax.shard_map(
  program, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"), check_vma=False
)
x, w = jnp.zeros((16, 32)), jnp.zeros((5, 32, 32))
text = jax.jit(spread).lower(x, w).compile().as_text()
found = Hlo(text).traffic(8)
print(json.dumps({k: [t.count, t.sent] for k, t in found.items()}))
"""

# In libtpu's format: no trip counts, groups as mesh axes, and a gather whose
# pieces are in the fusions of two computations.
TPU = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%fusion_start (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %piece.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%fusion_progress (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %piece.2 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%all-reduce-scatter.1 (p: f32[16]) -> f32[4] {
  %p = f32[16]{0:T(128)} parameter(0)
  %all = f32[16]{0:T(128)} all-reduce(%p), channel_id=9, \
replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}, to_apply=%add
  ROOT %part = f32[4]{0:T(128)} slice(%all), slice={[0:4]}
}

%inner_condition (p: (s32[], bf16[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(6)
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%inner_body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %fusion.2 = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%fusion_progress
  %start = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[4,8]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=11, \
source_target_pairs={{0,1},{1,0}}
  %done = bf16[4,8]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
  ROOT %t = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) tuple(%i, %done)
}

%outer_condition (p: (s32[], bf16[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(10)
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%outer_body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %fusion.1 = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%fusion_start
  %kernel = bf16[4,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %loop = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) while(%p), \
condition=%inner_condition, body=%inner_body
}

ENTRY %main (p: (s32[], bf16[4,8]), g: f32[16]) -> (s32[], bf16[4,8]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %g = f32[16]{0:T(128)} parameter(1)
  %scattered = f32[4]{0:T(128)} fusion(%g), kind=kCustom, \
calls=%all-reduce-scatter.1
  %everyone = f32[16]{0} all-reduce(%g), replica_groups={}, to_apply=%add
  %iota = f32[16]{0} all-reduce(%g), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %loop = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) while(%p), \
condition=%outer_condition, body=%outer_body
}
"""


@pytest.mark.e2e
def test_each_collective_counts_as_often_as_its_loops_run():
  done = subprocess.run(
    [sys.executable, "-c", CODE],
    cwd=ROOT,
    env=fake_devices(8),
    capture_output=True,
    text=True,
    check=True,
  )
  row = 8 * 32 * 4  # bytes of x on a device
  assert json.loads(done.stdout) == {
    "all-reduce": [15, 15 * 2 * 3 / 4 * row],
    "all-gather": [5, 5 * 3 / 4 * 4 * row],
    "reduce-scatter": [5, 5 * 3 / 4 * row],
    "all-to-all": [5, 5 * 3 / 4 * row],
    "collective-permute": [5, 5 * row],
  }


def test_the_format_of_libtpu():
  gathered, summed = 16 * 8 * 2, 16 * 4
  assert Hlo(TPU).traffic(8) == {
    # Pieces of one gather count once, not as often as the loop next to it.
    "all-gather": Traffic(10, 10 * 3 / 4 * gathered),
    # Among all eight devices, and among pairs.
    "all-reduce": Traffic(2, 2 * (7 / 8 + 1 / 2) * summed),
    "reduce-scatter": Traffic(1, 3 / 4 * summed),
    "collective-permute": Traffic(60, 60 * 4 * 8 * 2),
  }
  assert Hlo(TPU).kernels == 1


@pytest.mark.parametrize("text", ["", "HloModule jit_f\n"])
def test_a_program_without_collectives(text):
  assert Hlo(text).traffic(4) == {}
