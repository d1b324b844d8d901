"""diffusers' Next-DiT under PyTorch, to compare ours with."""

import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.commands import start as entry_point
from lumina_jax.interop import save_pytorch
from lumina_jax.tokens import Condition

Work = Callable[[], Any]  # One call; returns once its arrays are ready.
Candidates = dict[str, Work]


class Sample(NamedTuple):
  """Inputs of all candidates: latents `f32[B, H, W, C]` and condition."""

  latents: np.ndarray
  condition: Condition


class Torch:
  """diffusers' LuminaNextDiT2DModel with our weights.

  Attributes:
    versions: versions of the libraries.
    threads: number of threads of PyTorch.
  """

  def __init__(self, cfg: ModelConfig, params: Any, device: str, dtype: str):
    try:
      import diffusers
      import torch
    except ImportError as error:
      entry_point.fail(
        ImportError(
          f"this compares with PyTorch ({error}): pip install -r "
          "requirements-parity.txt"
        )
      )
    self._torch, self._cfg = torch, cfg
    self._device = "cuda" if device == "gpu" else device
    self._dtype = getattr(torch, dtype)
    self.threads = torch.get_num_threads()
    self.versions = (
      f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
      save_pytorch(params, cfg, f"{folder}/model", layout="diffusers")
      model = diffusers.LuminaNextDiT2DModel.from_pretrained(
        f"{folder}/model", torch_dtype=self._dtype, low_cpu_mem_usage=False
      )
    self._model = model.to(self._device)

  def forward(self, sample: Sample) -> Candidates:
    def velocity(model, arguments):
      with self._torch.inference_mode():
        return self._velocity(model, arguments)

    return self._candidates(velocity, sample)

  def training(self, sample: Sample) -> Candidates:
    def step(model, arguments):
      model.zero_grad(set_to_none=True)
      loss = (self._velocity(model, arguments) ** 2).mean()
      loss.backward()
      return loss.detach()

    return self._candidates(step, sample)

  def free(self) -> None:
    """Frees the gradients and compiled programs."""
    self._model.zero_grad(set_to_none=True)
    self._torch._dynamo.reset()

  def _candidates(self, function: Callable, sample: Sample) -> Candidates:
    arguments = self._arguments(sample)

    def work(model):
      def call():
        out = function(model, arguments)
        if self._device == "cuda":
          self._torch.cuda.synchronize()
        return out

      return call

    compiled = self._torch.compile(self._model, dynamic=False)
    return {
      "torch eager": work(self._model),
      "torch.compile": work(compiled),
    }

  def _arguments(self, sample: Sample) -> dict[str, Any]:
    from diffusers.models import embeddings

    condition, cfg = sample.condition, self._cfg
    rotary = embeddings.get_2d_rotary_pos_embed_lumina(
      cfg.head_dim, *cfg.grid(*sample.latents.shape[1:3]).counts
    )

    def tensor(array, dtype=None):
      return self._torch.as_tensor(array, device=self._device, dtype=dtype)

    latents = np.moveaxis(sample.latents, -1, 1).copy()
    return dict(
      hidden_states=tensor(latents, self._dtype),
      timestep=tensor(condition.time[:, 0]),
      encoder_hidden_states=tensor(condition.text, self._dtype),
      encoder_mask=tensor(condition.text_segments),
      image_rotary_emb=rotary.to(self._device),
      cross_attention_kwargs={},
      return_dict=False,
    )

  def _velocity(self, model: Any, arguments: dict[str, Any]) -> Any:
    """`[B, C, H, W]`, the first half of the predicted channels."""
    return model(**arguments)[0][:, : self._cfg.channels].float()
