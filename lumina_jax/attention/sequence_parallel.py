"""Attention over a sequence that is sharded over devices, and its derivative.

Runs inside `jax.shard_map`: arrays are the local shards, and the length axis of
q, k, v and segments is sharded over one mesh axis, in order. On that axis,
device r U + u is member u of Ulysses group r: neighbours exchange heads, and
the groups form the ring.

B rows, l tokens of a device, H heads, G kv heads, K head channels.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lumina_jax.attention.kernel import Kernel, merge
from lumina_jax.attention.split import Split, repeated_kv_heads

# Differentiable attention to all keys; arguments of `Kernel.forward`.
AttentionFn = Callable[..., jax.Array]
Inputs = tuple[jax.Array, ...]  # q, k, v, q_segments and kv_segments
Permutation = tuple[tuple[int, int], ...]  # (source, target) of `ppermute`


def attend(
  axis: str,
  devices: int,
  split: Split,
  kernel: Kernel | AttentionFn,
  inputs: Inputs,
  name: str,
) -> jax.Array:
  """Self-attention among the tokens of all devices on a mesh axis.

  Args:
    axis: mesh axis that the length is sharded over.
    devices: size of that axis.
    split: degrees, whose product is `devices` unless it gathers.
    kernel: computes the products; a ring needs a `Kernel`.
    inputs: local shards, l tokens each, in the layout of `Kernel.forward`.
    name: see `checkpoint_names`.

  Returns:
    `[B, H, l, K]`.
  """
  q, k, v, q_segments, kv_segments = inputs
  if split.gather:
    gather = functools.partial(jax.lax.all_gather, axis_name=axis, tiled=True)
    k, v = (gather(x, axis=2) for x in (k, v))
    kv_segments = gather(kv_segments, axis=1)
    return attend_local(kernel, (q, k, v, q_segments, kv_segments), name)

  ring = ring_permutation(devices, split)
  if split.ulysses == 1:
    return attend_local(kernel, inputs, name, axis, ring)

  u = split.ulysses
  groups = [list(range(i, i + u)) for i in range(0, devices, u)]
  swap = functools.partial(
    jax.lax.all_to_all, axis_name=axis, axis_index_groups=groups, tiled=True
  )
  repeats = repeated_kv_heads(k.shape[1], u) // k.shape[1]
  k, v = (_repeat(x, repeats) for x in (k, v))
  q, k, v = (swap(x, split_axis=1, concat_axis=2) for x in (q, k, v))
  q_segments, kv_segments = (
    jax.lax.all_gather(s, axis, axis_index_groups=groups, axis=1, tiled=True)
    for s in (q_segments, kv_segments)
  )
  inputs = q, k, v, q_segments, kv_segments
  out = attend_local(kernel, inputs, name, axis, ring)
  return swap(out, split_axis=2, concat_axis=1)


def _repeat(x: jax.Array, times: int) -> jax.Array:
  """Repeats each kv head; its cotangents are summed in float32."""
  if times == 1:
    return x
  return jnp.repeat(x.astype(jnp.float32), times, axis=1).astype(x.dtype)


def checkpoint_names(name: str) -> tuple[str, str]:
  """Names under which `remat` can save out and lse of an attention."""
  return f"{name}_out", f"{name}_lse"


def ring_permutation(devices: int, split: Split) -> Permutation:
  """Each device sends to its counterpart in the next group; () = no ring."""
  if split.ring == 1:
    return ()
  return tuple((i, (i + split.ulysses) % devices) for i in range(devices))


def attend_local(
  kernel: Kernel | AttentionFn,
  inputs: Inputs,
  name: str,
  axis: str = "",
  ring: Permutation = (),
) -> jax.Array:
  """Attention to the local keys or, with a ring, to the keys of the ring.

  Args:
    kernel: computes the products.
    inputs: see `Kernel.forward`.
    name: see `checkpoint_names`.
    axis: mesh axis of the ring.
    ring: see `ring_permutation`.

  Returns:
    `[B, H, L, K]`; zeros, without gradient, where a query has no key.

  Raises:
    ValueError: if the kernel is a function, which cannot serve a ring.
  """
  if callable(kernel) and ring:
    raise ValueError(f"{kernel} attends to all keys at once: no ring")
  if callable(kernel):
    return kernel(*inputs)
  # Rings lie side by side: a hop passes over the other members of a group.
  steps = len(ring) // ((ring[0][1] - ring[0][0]) % len(ring)) if ring else 1
  static = kernel, name, axis, ring, steps
  return _ring(static, *inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(static, *inputs):
  return _forward(static, *inputs)[0]


def _forward(static, q, k, v, q_segments, kv_segments):
  """Returns out `[B, H, L, K]` and lse `f32[B, H, L]`."""
  kernel, _, axis, ring, steps = static

  def block(keys):
    return kernel.forward(q, *keys[:2], q_segments, keys[2])

  def step(carry, _):
    keys, sums = carry
    return (_send(keys, axis, ring), merge(sums, block(keys))), None

  keys = k, v, kv_segments
  if steps == 1:
    return block(keys)
  zeros = jnp.zeros(q.shape, jnp.float32)
  sums = zeros, jnp.full(q.shape[:-1], -jnp.inf)
  (keys, sums), _ = jax.lax.scan(step, (keys, sums), None, steps - 1)
  out, lse = merge(sums, block(keys))
  return out.astype(v.dtype), lse


def _forward_residuals(static, *inputs):
  out, lse = _forward(static, *inputs)
  # Named here because the backward pass reads these arrays. A name on the
  # result outside would save an unused copy.
  out, lse = map(checkpoint_name, (out, lse), checkpoint_names(static[1]))
  return out, (*inputs, out, lse)


def _backward(static, residuals, d_out):
  """Cotangents; those of keys and values travel around the ring with them."""
  kernel, _, axis, ring, steps = static
  q, k, v, q_segments, kv_segments, out, lse = residuals
  shift = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1)
  lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse)

  def block(keys):
    inputs = q, *keys[:2], q_segments, keys[2], lse, shift, d_out
    return tuple(x.astype(jnp.float32) for x in kernel.backward(*inputs))

  def add(sums, keys):
    # Sending overlaps with the products, which do not depend on it.
    received = _send(sums[1:], axis, ring)
    dq, *local = block(keys)
    pairs = zip(received, local, strict=True)
    return sums[0] + dq, *(a + b for a, b in pairs)

  def step(carry, _):
    keys, sums = carry
    return (_send(keys, axis, ring), add(sums, keys)), None

  keys = k, v, kv_segments
  sums = block(keys)
  if steps > 1:
    carry = _send(keys, axis, ring), sums
    (keys, sums), _ = jax.lax.scan(step, carry, None, steps - 2)
    dq, *d_keys = add(sums, keys)
    sums = dq, *_send(d_keys, axis, ring)  # back to their own devices
  cotangents = (d.astype(x.dtype) for d, x in zip(sums, (q, k, v), strict=True))
  return *cotangents, None, None


_ring.defvjp(_forward_residuals, _backward)


def _send(tree: Any, axis: str, ring: Permutation) -> Any:
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, ring), tree)
