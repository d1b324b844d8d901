"""PyTorch's scaled_dot_product_attention, for `benchmarks.attention`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import attention

from benchmarks.attention_sizes import Contestant, Plan


def theirs(
  plan: Plan, which: str, arrays: list[np.ndarray]
) -> dict[str, Contestant]:
  """torch's, eager: there is nothing around it to be compiled with."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = getattr(torch, plan.dtype)
  # Heads go second, as views: a network's projections lay them out like ours.
  q, k, v, d_out = (
    torch.as_tensor(x).to(device, dtype).transpose(1, 2) for x in arrays
  )

  def forward():
    with torch.inference_mode():
      return [torch.nn.functional.scaled_dot_product_attention(q, k, v)]

  def backward():
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]

  function = forward if which == "forward" else backward

  def contestant(backend):
    def work():
      with backend():
        for _ in range(plan.calls):
          function()
        if device == "cuda":
          torch.cuda.synchronize()

    def outputs():
      with backend():
        return [x.transpose(1, 2).float().cpu().numpy() for x in function()]

    return Contestant(outputs, work)

  found = {
    name: contestant(backend) for name, backend in _backends(device).items()
  }
  if device == "cpu":
    return found
  return {name: c for name, c in found.items() if _runs(name, c)}


def _runs(name: str, contestant: Contestant) -> bool:
  """Whether a kernel of torch takes this size; says so if not."""
  try:
    contestant.outputs()
  except RuntimeError as error:
    print(f"{name}: {str(error).splitlines()[0]}", flush=True)
    return False
  return True


def _backends(device: str) -> dict[str, Callable[[], Any]]:
  """Kernels of torch; on a GPU none that would hold all scores."""
  if device == "cpu":
    return {"torch": contextlib.nullcontext}
  allowed = {
    "torch flash": attention.SDPBackend.FLASH_ATTENTION,
    "torch cuDNN": attention.SDPBackend.CUDNN_ATTENTION,
  }
  return {
    name: functools.partial(attention.sdpa_kernel, backend)
    for name, backend in allowed.items()
  }
