"""Rematerialization policies: what the backward pass keeps and recomputes.

Every policy but "none" checkpoints whole blocks: it keeps the residual stream
at the input of each (Chen et al. 2016). A policy may keep more by name, or
offload what it keeps to the host's memory, from where it is prefetched.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from lumina_jax import attention
from lumina_jax.attention.sequence_parallel import checkpoint_names

STREAM = "stream"  # Name of the residual stream at the input of a block.

# Bytes kept on a device per block, for D width, L tokens of a device, bfloat16:
POLICIES = (
  "none",  # everything that the backward pass needs
  "full",  # 2 L D: the input
  "attention",  # 4 L D: the input and the output of self-attention
  "offload_hidden",  # 0: the input is on the host
  "offload_attention",  # 2 L D: the input; self-attention's output on the host
)


def wrap(block: type[nn.Module], remat: str) -> Callable[..., Any]:
  """Wraps a block, to be scanned, in a policy of `POLICIES`."""
  if remat == "none":
    return block
  # Only self-attention: attention to text is cheaper to recompute than to keep.
  names = checkpoint_names(attention.NAME)
  policies = jax.checkpoint_policies

  def offload(*names):
    return policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[*names],
      offload_src="device",
      offload_dst="pinned_host",
    )

  policy = {
    "full": None,
    "attention": policies.save_only_these_names(*names),
    "offload_hidden": offload(STREAM),
    "offload_attention": offload(*names),
  }[remat]
  return nn.remat(block, prevent_cse=False, policy=policy)
