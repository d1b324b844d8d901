"""The training step in PyTorch, around diffusers' Next-DiT."""

import contextlib
import warnings
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.peer import Sample, Torch, Work
from lumina_jax.backbone import ModelConfig
from lumina_jax.training.optimizer_config import OptimizerConfig

# Only the table of rotations is complex, see `_rotate`.
warnings.filterwarnings("ignore", "Torchinductor .* complex operators")


class TorchStep(Torch):
  """Flow loss, gradients, clipping, fused AdamW and EMA.

  Parameters are float32; autocast computes products in `cfg.dtype`. The network
  is diffusers', except for its attention, see `PlainAttention`.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    params: Any,
    device: str,
    optimizer: OptimizerConfig,
    compiled: bool,
  ):
    super().__init__(cfg, params, device, "float32")
    self._compiled, self._clip = compiled, optimizer.clip
    self._decay, self._steps = optimizer.ema_decay, 0
    self._model.train()
    for layer in self._model.layers:
      for attention in (layer.attn1, layer.attn2):
        attention.set_processor(PlainAttention())
    self._layers = [*self._model.layers]
    self._params = [*self._model.parameters()]
    self._ema = [p.detach().clone() for p in self._params]
    self._optimizer = torch.optim.AdamW(
      self._params,
      lr=optimizer.learning_rate,
      betas=(optimizer.b1, optimizer.b2),
      eps=optimizer.eps,
      weight_decay=optimizer.weight_decay,
      fused=True,
    )

  def start(
    self,
    sample: Sample,
    noise: tuple[np.ndarray, np.ndarray],
    recompute: bool,
    calls: int,
  ) -> tuple[Work, tuple[float, float]]:
    """Runs a first step with this noise.

    Args:
      sample: data of all steps.
      noise: noise of the first step: x0 `f32[B, H, W, C]` and t `f32[B]`.
      recompute: whether the backward pass recomputes layers.
      calls: steps of one call.

    Returns:
      A function that runs `calls` more steps, and loss and gradient norm of the
      first step.
    """
    x0, times = noise
    torch._dynamo.reset()
    # A step that ran out of memory may have left gradients.
    self._optimizer.zero_grad(set_to_none=True)
    wrap = Checkpointed if recompute else lambda layer: layer
    self._model.layers = torch.nn.ModuleList(map(wrap, self._layers))
    model = self._model
    if self._compiled:
      model = torch.compile(model, dynamic=False)
    arguments = self._arguments(sample)
    x1 = arguments["hidden_states"]
    x0 = self._tensor(np.moveaxis(x0, -1, 1).copy())
    loss, norm = self._step(model, arguments, x1, x0, self._tensor(times))

    def work():
      for _ in range(calls):
        times = torch.rand(len(x1), device=x1.device)
        self._step(model, arguments, x1, torch.randn_like(x1), times)
      if self._device == "cuda":
        torch.cuda.synchronize()

    return work, (loss.item(), norm.item())

  def _step(self, model, arguments: dict[str, Any], x1, x0, times):
    """Loss and gradient norm of a step, without waiting for the device."""
    t = times[:, None, None, None]
    arguments = arguments | dict(
      hidden_states=torch.lerp(x0, x1, t), timestep=times
    )
    with self._autocast():
      velocity = self._velocity(model, arguments)
    loss = ((velocity - (x1 - x0)) ** 2).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(self._params, self._clip)
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
    self._steps += 1
    with torch.no_grad():
      torch._foreach_lerp_(self._ema, self._params, 1 - decay)
    return loss.detach(), norm

  def _autocast(self):
    if self._cfg.dtype == "float32":
      return contextlib.nullcontext()
    return torch.autocast(self._device, getattr(torch, self._cfg.dtype))

  def _tensor(self, array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array, device=self._device)


class PlainAttention:
  """A faster version of diffusers' LuminaAttnProcessor2_0.

  That passes a mask, here without effect, with which PyTorch cannot use its
  flash kernels, and it rotates by complex numbers, for which torch.compile
  generates no code.
  """

  def __call__(
    self,
    attn,
    hidden_states,
    encoder_hidden_states,
    attention_mask=None,
    query_rotary_emb=None,
    key_rotary_emb=None,
  ):
    q = attn.to_q(hidden_states)
    k, v = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
    dtype, head_dim = q.dtype, q.shape[-1] // attn.heads
    q, k, v = (
      x.unflatten(-1, (-1, head_dim))
      for x in (attn.norm_q(q), attn.norm_k(k), v)
    )
    q = _rotate(q, query_rotary_emb).to(dtype)
    if key_rotary_emb is not None:
      k = _rotate(k, key_rotary_emb)
    group = attn.heads // k.shape[2]
    k, v = (x.to(dtype).repeat_interleave(group, dim=2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
  """Rotates channel pairs of `[B, L, H, K]` by `complex[1, L, K/2]`."""
  cos, sin = torch.view_as_real(rotary).unsqueeze(2).unbind(-1)
  a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
  return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Checkpointed(torch.nn.Module):
  """A layer that keeps its input only; the backward pass recomputes it."""

  def __init__(self, layer: torch.nn.Module):
    super().__init__()
    self.layer = layer

  def forward(self, *args, **kwargs):
    return checkpoint(self.layer, *args, use_reentrant=False, **kwargs)


def release() -> None:
  """Releases unused GPU memory."""
  torch._dynamo.reset()
  if torch.cuda.is_available():
    torch.cuda.empty_cache()


def describe() -> tuple[str, str]:
  """The library and its device, "cpu" or "gpu"."""
  device = "gpu" if torch.cuda.is_available() else "cpu"
  return (
    f"torch {torch.__version__} ({torch.get_num_threads()} threads)",
    device,
  )
