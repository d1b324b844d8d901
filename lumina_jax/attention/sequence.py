"""Attention over a sequence that lies on many devices, and its derivative.

Runs inside `jax.shard_map`: arrays are one device's, and the length axis of q,
k, v and segments is sharded over a mesh axis in order. Along that axis device
r U + u is number u of Ulysses' group r, so neighbours swap heads and groups
form the ring.

B rows, l tokens of a device, H heads, G kv heads, K head channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lumina_jax.attention.kernel import Kernel, merge
from lumina_jax.attention.split import Split, replicated

Whole = Callable[..., jax.Array]  # Differentiable attention to all the keys.
Hops = tuple[tuple[int, int], ...]  # (from, to) of each device of the axis.


def attend_over(
  axis: str,
  devices: int,
  split: Split,
  kernel: Kernel | Whole,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
  name: str,
) -> jax.Array:
  """Self-attention among the tokens of all devices of a mesh axis.

  Args:
    axis: name of the mesh axis that the length lies over.
    devices: of that axis.
    split: how; its degrees multiply to `devices`, unless it gathers.
    kernel: for the products; with a ring a `Kernel`.
    q: `[B, H, l, K]`.
    k: `[B, G, l, K]`.
    v: `[B, G, l, K]`.
    q_segments: `i32[B, l]`.
    kv_segments: `i32[B, l]`.
    name: see `saved`.

  Returns:
    `[B, H, l, K]`.
  """
  if split.gather:
    gather = functools.partial(jax.lax.all_gather, axis_name=axis, tiled=True)
    k, v = (gather(x, axis=2) for x in (k, v))
    kv_segments = gather(kv_segments, axis=1)
    return attend_here(kernel, q, k, v, q_segments, kv_segments, name)

  hops = ring_hops(devices, split)
  if split.ulysses == 1:
    inputs = q, k, v, q_segments, kv_segments
    return attend_here(kernel, *inputs, name, axis, hops)

  u = split.ulysses
  groups = [list(range(i, i + u)) for i in range(0, devices, u)]
  swap = functools.partial(
    jax.lax.all_to_all, axis_name=axis, axis_index_groups=groups, tiled=True
  )
  repeats = replicated(k.shape[1], u) // k.shape[1]
  k, v = (_repeat(x, repeats) for x in (k, v))
  q, k, v = (swap(x, split_axis=1, concat_axis=2) for x in (q, k, v))
  q_segments, kv_segments = (
    jax.lax.all_gather(s, axis, axis_index_groups=groups, axis=1, tiled=True)
    for s in (q_segments, kv_segments)
  )
  inputs = q, k, v, q_segments, kv_segments
  out = attend_here(kernel, *inputs, name, axis, hops)
  return swap(out, split_axis=2, concat_axis=1)


def _repeat(x: jax.Array, times: int) -> jax.Array:
  """Copies of each kv head, whose cotangents are summed in float32."""
  if times == 1:
    return x
  return jnp.repeat(x.astype(jnp.float32), times, axis=1).astype(x.dtype)


def saved(name: str) -> tuple[str, str]:
  """Names of what `remat` may save of the attention of that name."""
  return f"{name}_out", f"{name}_lse"


def ring_hops(devices: int, split: Split) -> Hops:
  """Every device sends to its fellow in the next group; () without a ring."""
  if split.ring == 1:
    return ()
  return tuple((i, (i + split.ulysses) % devices) for i in range(devices))


def attend_here(
  kernel: Kernel | Whole,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segments: jax.Array,
  kv_segments: jax.Array,
  name: str,
  axis: str = "",
  hops: Hops = (),
) -> jax.Array:
  """Attention to one's own keys or, with hops, to those of the ring.

  Args:
    kernel: for the products.
    q: `[B, H, L, K]`.
    k: `[B, G, S, K]`.
    v: `[B, G, S, K]`.
    q_segments: `i32[B, L]`.
    kv_segments: `i32[B, S]`.
    name: see `saved`.
    axis: of the ring.
    hops: of `ring_hops`.

  Returns:
    `[B, H, L, K]`; zeros, without gradient, where a query has no key.

  Raises:
    ValueError: if a function shall serve a ring.
  """
  if callable(kernel) and hops:
    raise ValueError(f"{kernel} attends to all keys at once: no ring")
  if callable(kernel):
    return kernel(q, k, v, q_segments, kv_segments)
  steps = len(hops) and len(hops) // _fellows(hops)
  static = kernel, name, axis, hops, max(steps, 1)
  return _ring(static, q, k, v, q_segments, kv_segments)


def _fellows(hops: Hops) -> int:
  """Rings that lie side by side: a hop goes on by so many devices."""
  return (hops[0][1] - hops[0][0]) % len(hops)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(static, q, k, v, q_segments, kv_segments):
  return _forward(static, q, k, v, q_segments, kv_segments)[0]


def _forward(static, q, k, v, q_segments, kv_segments):
  """Returns out `[B, H, L, K]` and lse `f32[B, H, L]`."""
  kernel, _, axis, hops, steps = static

  def block(keys):
    return kernel.forward(q, *keys[:2], q_segments, keys[2])

  def step(carry, _):
    keys, sums = carry
    return (_send(keys, axis, hops), merge(sums, block(keys))), None

  keys = k, v, kv_segments
  if steps == 1:
    return block(keys)
  zeros = jnp.zeros(q.shape, jnp.float32)
  sums = zeros, jnp.full(q.shape[:-1], -jnp.inf)
  (keys, sums), _ = jax.lax.scan(step, (keys, sums), None, steps - 1)
  out, lse = merge(sums, block(keys))
  return out.astype(v.dtype), lse


def _saving(static, *inputs):
  out, lse = _forward(static, *inputs)
  # Named here, where the backward pass takes them from: a name given to the
  # result outside would save a copy that nobody reads.
  out, lse = map(checkpoint_name, (out, lse), saved(static[1]))
  return out, (*inputs, out, lse)


def _backward(static, saved, d_out):
  """Cotangents; those of keys and values travel the ring with them."""
  kernel, _, axis, hops, steps = static
  q, k, v, q_segments, kv_segments, out, lse = saved
  shift = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1)
  lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse)

  def block(keys):
    inputs = q, *keys[:2], q_segments, keys[2], lse, shift, d_out
    return tuple(x.astype(jnp.float32) for x in kernel.backward(*inputs))

  def add(sums, keys):
    # Nothing of this step needs what is sent meanwhile.
    travelling = _send(sums[1:], axis, hops)
    dq, *own = block(keys)
    both = zip(travelling, own, strict=True)
    return sums[0] + dq, *(a + b for a, b in both)

  def step(carry, _):
    keys, sums = carry
    return (_send(keys, axis, hops), add(sums, keys)), None

  keys = k, v, kv_segments
  sums = block(keys)
  if steps > 1:
    carry = _send(keys, axis, hops), sums
    (keys, sums), _ = jax.lax.scan(step, carry, None, steps - 2)
    dq, *d_keys = add(sums, keys)
    sums = dq, *_send(d_keys, axis, hops)  # Home.
  dq, dk, dv = sums
  return (
    dq.astype(q.dtype),
    dk.astype(k.dtype),
    dv.astype(v.dtype),
    None,
    None,
  )


_ring.defvjp(_saving, _backward)


def _send(tree, axis: str, hops: Hops):
  return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, hops), tree)
