"""Mixture of experts: each token passes through a few of many feed-forwards.

Experts have no capacity and drop no token: tokens are sorted by expert and
multiplied in one ragged product (MegaBlocks, Gale et al. 2022). A token costs
`active` feed-forwards on a TPU. Where XLA has no ragged kernel (CPU), the
product is dense and costs the time and memory of `experts` feed-forwards.

B rows, L tokens, D width, F feed-forward, E experts, k active experts,
T = B L tokens.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from lumina_jax.backbone.layers import Einsum, parameter, xavier
from lumina_jax.tokens import per_token

COLLECTION = "balance"
STREAM = ("act_batch", "act_length", None)


class Experts(nn.Module):
  """Routed SwiGLUs: sum over the k best experts of softmax(logits)_e f_e(x).

  The softmax is over the k selected logits only, in float32 (Next-DiT-MoE). The
  caller passes the router's input: the token itself, or its sample's time.

  Attributes:
    hidden: F.
    experts: E.
    active: k.
    by_sample: whether all tokens of a sample use the same experts.
    dtype: dtype of the experts; the router is always float32.
  """

  hidden: int
  experts: int
  active: int
  by_sample: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, router_input: jax.Array, segments: jax.Array
  ) -> jax.Array:
    """Applies the experts.

    Args:
      x_BLD: tokens.
      router_input: `[B, L, R]`, or `[B, N, R]` if `by_sample`.
      segments: `i32[B, L]`.

    Returns:
      `[B, L, D]`.
    """
    logits = self._route(router_input)
    best, choice = jax.lax.top_k(logits, self.active)
    weights = jax.nn.softmax(best, axis=-1)
    exists = segments != 0
    if self.by_sample:
      numbers = jnp.arange(1, logits.shape[1] + 1)
      exists = (segments[:, None] == numbers[:, None]).any(axis=-1)
    self.sow(COLLECTION, "loss", balance(logits, choice, exists))
    if self.by_sample:
      each = (*segments.shape, self.active)
      choice = jnp.broadcast_to(per_token(choice, segments), each)
      weights = jnp.broadcast_to(per_token(weights, segments), each)
    width = x_BLD.shape[-1]
    gate = self._kernels("gate", width, self.hidden)
    up = self._kernels("up", width, self.hidden)
    down = self._kernels("down", self.hidden, width)
    apply = _on_every_shard(swiglu, x_BLD.shape)
    return apply(x_BLD.astype(self.dtype), choice, weights, gate, up, down)

  def _route(self, x: jax.Array) -> jax.Array:
    inputs = x.shape[-1]
    # PyTorch's default for linear layers.
    bound = 1 / math.sqrt(inputs)
    init = nn.initializers.uniform(2 * bound)
    return Einsum(
      "BLR,RE->BLE",
      (inputs, self.experts),
      (None, "expert"),
      lambda *args: init(*args) - bound,
      name="router",
    )(x.astype(jnp.float32))

  def _kernels(self, name: str, inputs: int, outputs: int) -> jax.Array:
    axes = ("mlp", "embed") if name == "down" else ("embed", "mlp")
    shape = self.experts, inputs, outputs
    init = xavier(stacked=1)
    kernels = parameter(self, f"{name}_kernel", init, shape, ("expert", *axes))
    return kernels.astype(self.dtype)


def swiglu(x_BLD, choice, weights, gate, up, down) -> jax.Array:
  """Each token through its experts, weighted: `[B, L, D]`.

  Args:
    x_BLD: tokens.
    choice: `i32[B, L, k]`, experts of each token.
    weights: `f32[B, L, k]`, their weights.
    gate: `[E, D, F]` kernels.
    up: `[E, D, F]` kernels.
    down: `[E, F, D]` kernels.
  """
  experts, active = gate.shape[0], choice.shape[-1]
  x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
  order = jnp.argsort(choice.reshape(-1), stable=True)
  sizes = jnp.bincount(choice.reshape(-1), length=experts)
  x = x_TD[order // active]
  h = nn.silu(jax.lax.ragged_dot(x, gate, sizes))
  y = jax.lax.ragged_dot(h * jax.lax.ragged_dot(x, up, sizes), down, sizes)
  # A second sort restores the order of the tokens. Unlike a scatter-add, the
  # sum over k then has a fixed order.
  y = y[jnp.argsort(order)].reshape(*x_TD.shape[:1], active, -1)
  y = jnp.einsum("tkd,tk->td", y, weights.reshape(-1, active))
  return y.reshape(x_BLD.shape).astype(x_BLD.dtype)


def _on_every_shard(function: Callable, shape: tuple[int, ...]) -> Callable:
  """Runs `function` on each device's own tokens, so that no token is sent.

  Kernels are gathered like every weight of a layer, except along the axis that
  shards the feed-forward, whose partial results are summed. Tokens that do not
  divide over the devices are sorted together.
  """
  mesh = jax.sharding.get_abstract_mesh()
  stream = nn.logical_to_mesh_axes(STREAM)
  if mesh.empty or mesh.size == 1 or stream is None:
    return function
  for size, axes in zip(shape, stream, strict=False):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    if size % math.prod(mesh.shape[axis] for axis in axes):
      return function
  wide = nn.logical_to_mesh_axes(("mlp",))[0]

  def local(*args):
    y = function(*args)
    return y if wide is None else jax.lax.psum(y, wide)

  up = PartitionSpec(None, None, wide)
  down = PartitionSpec(None, wide, None)
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(stream, stream, stream, up, up, down),
    out_specs=stream,
    check_vma=False,
  )


def balance(
  logits: jax.Array, choice: jax.Array, exists: jax.Array
) -> jax.Array:
  """Load-balancing loss E sum_e f_e p_e; 1 if all experts are used equally.

  f_e is the fraction of choices that select expert e, p_e the mean of its
  probability (Switch Transformer, Fedus et al. 2021, equations 4 to 6).

  Args:
    logits: `f32[B, M, E]` of M tokens or samples.
    choice: `i32[B, M, k]`, their experts.
    exists: `bool[B, M]`, False for padding.

  Returns:
    `f32[]`.
  """
  experts = logits.shape[-1]
  count = jnp.maximum(exists.sum(), 1)
  mean = functools.partial(jnp.sum, axis=(0, 1), where=exists[..., None])
  chosen = jax.nn.one_hot(choice, experts).mean(axis=-2)
  share = mean(chosen) / count
  probability = mean(jax.nn.softmax(logits, axis=-1)) / count
  return experts * jnp.sum(share * probability)
