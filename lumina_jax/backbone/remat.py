"""What the backward pass finds of a block, and what it computes again.

Every block is one unit: its input, the residual stream, is kept for all of them
(Chen et al. 2016). A policy may keep more of a block by name, or move what is
kept to the host's memory, which a program then fetches ahead of need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from lumina_jax import attention
from lumina_jax.attention.sequence_parallel import checkpoint_names

STREAM = "stream"  # Name of the residual stream where a block begins.

# Bytes of a block that stay, for D width, L tokens of a device, in bfloat16:
POLICIES = (
  "none",  # all that it ever computed
  "full",  # 2 L D: its input
  "attention",  # 4 L D: its input and what self-attention gave
  "offload_hidden",  # 0: its input waits on the host
  "offload_attention",  # 2 L D: its input; self-attention waits on the host
)

_policies = jax.checkpoint_policies


def named(remat: str | bool) -> str:
  """The name of a policy.

  Runs of earlier versions say True for "full" and False for "none".

  Raises:
    ValueError: if there is none of that name.
  """
  if isinstance(remat, bool):
    return "full" if remat else "none"
  if remat not in POLICIES:
    raise ValueError(f"remat {remat!r}: use one of {POLICIES}")
  return remat


def wrap(block: type[nn.Module], remat: str) -> Callable[..., Any]:
  """A block under a policy of `POLICIES`, to be scanned."""
  if remat == "none":
    return block
  # Attention to a few hundred words is cheaper to compute than to keep.
  names = checkpoint_names(attention.NAME)
  to_host = dict(offload_src="device", offload_dst="pinned_host")
  policy = {
    "full": None,
    "attention": _policies.save_only_these_names(*names),
    "offload_hidden": _policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[STREAM],
      **to_host,
    ),
    "offload_attention": _policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[*names],
      **to_host,
    ),
  }[remat]
  return nn.remat(block, prevent_cse=False, policy=policy)
