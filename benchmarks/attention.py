"""Our attention against XLA's and PyTorch's: python -m benchmarks.attention

`attend` with each kernel and torch's scaled_dot_product_attention, on the same
arrays: forward, and forward with the gradients of queries, keys and values.
Outputs and gradients are compared first. Each round calls all candidates once,
so that other work on the machine slows all of them alike.

On a CPU, our chunked kernel runs against the dense one. On an accelerator, the
choice of "auto" (cuDNN, splash) runs against the chunked one, in bfloat16, with
as many rows as fill 16,384 tokens; torch then uses its flash or cuDNN kernel.
The sizes are flags, so the latter also runs on a CPU:

  python -m benchmarks.attention --kernels=auto,chunked --dtype=bfloat16 \
    --tokens=256 --heads=2 --head_dims=72 --row_tokens=512

B rows, L tokens, H heads, K head channels.
"""

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

from benchmarks.attention_sizes import PASSES, Candidate, Plan, Size
from benchmarks.forward import in_turn, processor
from benchmarks.table import print_head, print_row
from lumina_jax.attention import attend
from lumina_jax.commands import start as entry_point

# Relative to the largest value; gradients are sums of thousands of products.
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


def our_candidates(
  plan: Plan, direction: str, arrays: list[np.ndarray]
) -> dict[str, Candidate]:
  """A compiled program of each kernel."""
  arrays = [jnp.asarray(x, plan.dtype) for x in arrays]
  # An input, as in a network: XLA would remove a constant mask.
  segments = jnp.ones(arrays[0].shape[:2], jnp.int32)

  def forward(kernel, q, k, v, segments):
    return attend(q, k, v, segments, segments, kernel=kernel, packed=False)

  def backward(kernel, q, k, v, d_out, segments):
    function = functools.partial(forward, kernel, segments=segments)
    out, pull = jax.vjp(function, q, k, v)
    return out, *pull(d_out)

  def candidate(kernel):
    is_forward = direction == "forward"
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
    return Candidate(outputs, work, memory)

  return {kernel: candidate(kernel) for kernel in plan.kernels}


def check(plan: Plan, candidates: dict[str, Candidate]) -> None:
  """Checks that all candidates agree with the first.

  Raises:
    ValueError: if they differ by more than rounding.
  """
  first, *others = candidates
  expected = candidates[first].outputs()
  for name in others:
    for a, b in zip(expected, candidates[name].outputs(), strict=True):
      difference = float(np.abs(a - b).max() / np.abs(a).max())
      if not difference <= TOLERANCE[plan.dtype]:
        raise ValueError(f"{first} and {name} differ by {difference:.1e}")


def columns(plan: Plan, torch: bool) -> list[str]:
  """Column names of the table."""
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
  direction: str,
  candidates: dict[str, Candidate],
  torch: bool,
  rounds: int,
) -> list[str]:
  """Measures one pass at one size; returns a row of the table."""
  works = {name: c.work for name, c in candidates.items()}
  times = {
    name: float(np.median(ms)) / plan.calls
    for name, ms in in_turn(works, rounds).items()
  }
  best = {name: times[name] for name in plan.kernels}
  if torch:
    others = [ms for name, ms in times.items() if name not in best]
    best["torch"] = min(others, default=math.nan)
  first = best[plan.kernels[0]]
  speed = size.flops(direction) / 1e9
  return [
    str(size.head_dim),
    f"{size.rows} x {size.tokens}",
    direction,
    *[f"{ms:.2f} ({speed / ms:.3g})" for ms in best.values()],
    *[f"{ms / first:.2f}" for ms in [*best.values()][1:]],
    *[f"{candidates[n].memory / MB:.1f}" for n in plan.kernels],
  ]


def table(plan: Plan, torch: bool, rounds: int) -> Iterator[list[str]]:
  """Measures the rows of the table, one after the other."""
  for head_dim in plan.head_dims:
    for tokens in plan.tokens:
      rows = max(1, plan.row_tokens // tokens)
      size = Size(rows, tokens, plan.heads, head_dim)
      arrays = size.random_arrays()
      for direction in PASSES:
        candidates = our_candidates(plan, direction, arrays)
        if torch:
          from benchmarks.torch_attention import torch_candidates

          candidates |= torch_candidates(plan, direction, arrays)
        check(plan, candidates)
        yield row(plan, size, direction, candidates, torch, rounds)


def make_plan(args: Any) -> Plan:
  """The plan for this backend; flags override its fields."""
  plan = ON_CPU if jax.default_backend() == "cpu" else ON_ACCELERATOR
  changes = {
    field.name: getattr(args, field.name)
    for field in dataclasses.fields(Plan)
    if getattr(args, field.name) is not None
  }
  for name in ("tokens", "head_dims"):
    if name in changes:
      changes[name] = [int(number) for number in changes[name]]
  return dataclasses.replace(plan, **changes)


def libraries(with_torch: bool) -> tuple[str, bool]:
  """Describes the libraries; returns whether torch can be compared with.

  It cannot if it runs on another device than JAX.
  """
  ours = f"JAX {jax.__version__} on {jax.default_backend()}"
  if not with_torch:
    return f"{ours}; without PyTorch (--notorch)", False
  if not importlib.util.find_spec("torch"):
    return f"{ours}; PyTorch is not installed", False
  import torch

  device = "gpu" if torch.cuda.is_available() else "cpu"
  name = f"torch {torch.__version__} on {device}"
  if device != jax.default_backend():
    return f"{ours}; not compared with {name}, another device", False
  return f"{ours}; {name}, {torch.get_num_threads()} threads", True


def main(_) -> None:
  args = flags.FLAGS
  plan = make_plan(args)
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
  for cells in table(plan, torch, args.rounds):
    print_row(cells)


if __name__ == "__main__":
  # By default JAX would reserve three quarters of the GPU; PyTorch shares it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  flags.DEFINE_list("kernels", None, "Our kernels; the first is the reference.")
  flags.DEFINE_list("tokens", None, "Tokens of a row.")
  flags.DEFINE_integer("heads", None, "Heads.", lower_bound=1)
  flags.DEFINE_list("head_dims", None, "Channels of a head.")
  flags.DEFINE_integer("row_tokens", None, "Tokens of all rows.")
  flags.DEFINE_enum("dtype", None, [*TOLERANCE], "Dtype of all arrays.")
  flags.DEFINE_bool("torch", True, "Whether to compare with PyTorch.")
  flags.DEFINE_integer("calls", None, "Successive calls.", lower_bound=1)
  flags.DEFINE_integer("rounds", 4, "Timed rounds.", lower_bound=1)
  entry_point.run(main)
