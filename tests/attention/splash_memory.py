"""Prints temporary bytes per TPU device of attention and its gradients.

Arguments: sequence_split, then numbers of tokens.
"""

import sys

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from lumina_jax.attention import attend
from lumina_jax.parallel import topology
from lumina_jax.parallel.mesh import RULES, MeshConfig, make_mesh


def temporaries(machine, split: str, length: int) -> int:
  mesh = make_mesh(MeshConfig(data=1, context=4), list(machine.devices))

  def placed(shape, dtype):
    sharding = NamedSharding(mesh, PartitionSpec(None, "context"))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  def loss(q, k, v, segments):
    with nn.logical_axis_rules(RULES):
      out = attend(q, k, v, segments, segments, sequence_split=split)
    return out.astype(jnp.float32).sum()

  q = placed((1, length, 8, 128), jnp.bfloat16)
  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(
      q, q, q, placed((1, length), jnp.int32)
    )
  compiled = lowered.compile()
  assert "tpu_custom_call" in compiled.as_text()
  return compiled.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
  four_chips = topology.find("v5p:2x2x1")
  for number in sys.argv[2:]:
    print(temporaries(four_chips, sys.argv[1], int(number)))
