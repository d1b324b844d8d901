"""PyTorch's scaled_dot_product_attention, for `benchmarks.attention`."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import attention

from benchmarks.attention_sizes import Candidate, Plan


def torch_candidates(
  plan: Plan, direction: str, arrays: list[np.ndarray]
) -> dict[str, Candidate]:
  """torch's kernels, eager: there is nothing around them to compile."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = getattr(torch, plan.dtype)
  # Views with heads second: a network's projections have the same layout.
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

  function = forward if direction == "forward" else backward

  def candidate(backend):
    def work():
      with backend():
        for _ in range(plan.calls):
          function()
        if device == "cuda":
          torch.cuda.synchronize()

    def outputs():
      with backend():
        return [x.transpose(1, 2).float().cpu().numpy() for x in function()]

    return Candidate(outputs, work)

  found = {
    name: candidate(backend) for name, backend in _backends(device).items()
  }
  if device == "cpu":
    return found
  return {name: c for name, c in found.items() if _runs(name, c)}


def _runs(name: str, candidate: Candidate) -> bool:
  """Whether a kernel supports this size; prints the error if not."""
  try:
    candidate.outputs()
  except RuntimeError as error:
    print(f"{name}: {str(error).splitlines()[0]}", flush=True)
    return False
  return True


def _backends(device: str) -> dict[str, Callable[[], Any]]:
  """torch's kernels; on a GPU only those that do not store all scores."""
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
