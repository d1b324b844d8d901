"""Our attention against XLA's and PyTorch's: python -m benchmarks.attention

`attend` with each kernel and torch's scaled_dot_product_attention, on the same
arrays: forward, and forward with the gradients of queries, keys and values.
Each round calls all of them once, so that what disturbs the machine disturbs
all alike. Before that, outputs and gradients are compared.

On a CPU that is our chunked kernel against the dense one. On an accelerator it
is what "auto" chooses there (cuDNN, splash) against the chunked one, in
bfloat16, with as many rows as fill 16,384 tokens; torch then has to use its
flash or cuDNN kernel. The sizes are flags, so the latter runs anywhere:

  python -m benchmarks.attention --kernels=auto,chunked --dtype=bfloat16 \
    --tokens=256 --heads=2 --head_dims=72 --row_tokens=512

B rows, L tokens, H heads, K head channels.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.attention_sizes import PASSES, Contestant, Plan, Size
from benchmarks.forward import in_turn, processor
from benchmarks.table import print_head, print_row
from lumina_jax.attention import attend
from lumina_jax.commands import start as entry_point

# Of the largest value; gradients are sums over thousands of rounded products.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
MB = 1e6


ON_CPU = Plan(
  ["chunked", "dense"], [1024, 2048, 4096, 8192], 8, [64], 1, "float32", 1
)
ON_ACCELERATOR = Plan(
  ["auto", "chunked"],
  [1024, 4096, 16_384],
  32,
  [72, 128],
  16_384,
  "bfloat16",
  20,
)


def ours(
  plan: Plan, which: str, arrays: list[np.ndarray]
) -> dict[str, Contestant]:
  """Compiled programs of each kernel."""
  arrays = [jnp.asarray(x, plan.dtype) for x in arrays]
  # Data, as in a network: XLA could drop the mask if it knew them.
  segments = jnp.ones(arrays[0].shape[:2], jnp.int32)

  def forward(kernel, q, k, v, segments):
    how = dict(kernel=kernel, packed=False)
    return attend(q, k, v, segments, segments, **how)

  def backward(kernel, q, k, v, d_out, segments):
    function = functools.partial(forward, kernel, segments=segments)
    out, pull = jax.vjp(function, q, k, v)
    return out, *pull(d_out)

  def contestant(kernel):
    is_forward = which == "forward"
    function = functools.partial(forward if is_forward else backward, kernel)
    inputs = *arrays[: 3 if is_forward else 4], segments
    compiled = jax.jit(function).lower(*inputs).compile()

    def work():
      for _ in range(plan.calls):
        out = compiled(*inputs)
      jax.block_until_ready(out)

    def outputs():
      return [
        np.asarray(x, np.float32) for x in jax.tree.leaves(compiled(*inputs))
      ]

    memory = compiled.memory_analysis().temp_size_in_bytes
    return Contestant(outputs, work, memory)

  return {kernel: contestant(kernel) for kernel in plan.kernels}


def check(plan: Plan, contestants: dict[str, Contestant]) -> None:
  """Whether all give what the first gives.

  Raises:
    ValueError: if they differ by more than rounding.
  """
  first, *others = contestants
  expected = contestants[first].outputs()
  for name in others:
    for mine, their in zip(expected, contestants[name].outputs(), strict=True):
      apart = float(np.abs(mine - their).max() / np.abs(mine).max())
      if not apart <= TOLERANCE[plan.dtype]:
        raise ValueError(f"{first} and {name} differ by {apart:.1e}")


def columns(plan: Plan, torch: bool) -> list[str]:
  """Heads of the table."""
  first, *others = plan.kernels
  if torch:
    others.append("torch")
  return [
    "head_dim",
    "rows x tokens",
    "pass",
    *[f"{name}, ms (TFLOP/s)" for name in plan.kernels],
    *(["torch, ms (TFLOP/s)"] if torch else []),
    *[f"{name} / {first}" for name in others],
    *[f"{name}, temporary MB" for name in plan.kernels],
  ]


def row(
  plan: Plan,
  size: Size,
  which: str,
  contestants: dict[str, Contestant],
  torch: bool,
  rounds: int,
) -> list[str]:
  """Measures one pass at one size: a line of the table."""
  works = {name: c.work for name, c in contestants.items()}
  times = {
    name: float(np.median(ms)) / plan.calls
    for name, ms in in_turn(works, rounds).items()
  }
  best = {name: times[name] for name in plan.kernels}
  if torch:
    others = [ms for name, ms in times.items() if name not in best]
    best["torch"] = min(others, default=math.nan)
  first = best[plan.kernels[0]]
  speed = size.flops(which) / 1e9
  return [
    str(size.head_dim),
    f"{size.rows} x {size.tokens}",
    which,
    *[f"{ms:.2f} ({speed / ms:.3g})" for ms in best.values()],
    *[f"{ms / first:.2f}" for ms in [*best.values()][1:]],
    *[f"{contestants[n].memory / MB:.1f}" for n in plan.kernels],
  ]


def table(plan: Plan, torch: bool, rounds: int) -> Iterator[list[str]]:
  """Lines of the table, one after the other."""
  for head_dim in plan.head_dims:
    for tokens in plan.tokens:
      rows = max(1, plan.row_tokens // tokens)
      size = Size(rows, tokens, plan.heads, head_dim)
      arrays = size.draw()
      for which in PASSES:
        contestants = ours(plan, which, arrays)
        if torch:
          from benchmarks.torch_attention import theirs

          contestants |= theirs(plan, which, arrays)
        check(plan, contestants)
        yield row(plan, size, which, contestants, torch, rounds)


def plan_of(args: Any) -> Plan:
  """The plan for this backend, with what flags change of it."""
  plan = ON_CPU if jax.default_backend() == "cpu" else ON_ACCELERATOR
  given = {
    field.name: getattr(args, field.name)
    for field in dataclasses.fields(Plan)
    if getattr(args, field.name) is not None
  }
  for name in ("tokens", "head_dims"):
    if name in given:
      given[name] = [int(number) for number in given[name]]
  return dataclasses.replace(plan, **given)


def libraries(wanted: bool) -> tuple[str, bool]:
  """What they are called here, and whether torch is there to compare with.

  It is not where its device is not that of JAX.
  """
  ours = f"JAX {jax.__version__} on {jax.default_backend()}"
  if not wanted:
    return f"{ours}, alone as asked", False
  if not importlib.util.find_spec("torch"):
    return f"{ours}; PyTorch is not installed: ours alone", False
  import torch

  theirs = "gpu" if torch.cuda.is_available() else "cpu"
  name = f"torch {torch.__version__} on {theirs}"
  if theirs != jax.default_backend():
    return f"{ours}; {name}, another device: ours alone", False
  return f"{ours}; {name}, {torch.get_num_threads()} threads", True


def main(_) -> None:
  args = flags.FLAGS
  plan = plan_of(args)
  device = jax.devices()[0]
  name = processor() if device.platform == "cpu" else device.device_kind
  versions, torch = libraries(args.torch)
  print(
    f"{name}, {os.cpu_count()} cores\n{versions}\n"
    f"{plan.heads} heads, {plan.dtype}; median of {args.rounds} rounds of "
    f"{plan.calls} calls; outputs and gradients agree to "
    f"{TOLERANCE[plan.dtype]:g} of the largest value\n"
    f"TFLOP/s: 4 B L^2 H K forward, 3.5 times that with backward"
    f"{'; torch is the faster of its kernels' if torch else ''}\n"
  )
  print_head(columns(plan, torch))
  for line in table(plan, torch, args.rounds):
    print_row(line)


if __name__ == "__main__":
  # JAX would take three quarters of a GPU that it shares with PyTorch here.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  flags.DEFINE_list("kernels", None, "Of ours; the first is compared with.")
  flags.DEFINE_list("tokens", None, "Lengths of a row.")
  flags.DEFINE_integer("heads", None, "Heads.", lower_bound=1)
  flags.DEFINE_list("head_dims", None, "Channels of a head.")
  flags.DEFINE_integer("row_tokens", None, "Rows fill so many tokens.")
  flags.DEFINE_enum("dtype", None, [*TOLERANCE], "Of all arrays.")
  flags.DEFINE_bool("torch", True, "Whether to compare with PyTorch.")
  flags.DEFINE_integer("calls", None, "In a row.", lower_bound=1)
  flags.DEFINE_integer("rounds", 4, "Rounds that are timed.", lower_bound=1)
  entry_point.run(main)
