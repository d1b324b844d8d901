"""Validates the config before training starts."""

from __future__ import annotations

from jax.sharding import Mesh

from lumina_jax.backbone import attention
from lumina_jax.media import MEDIA
from lumina_jax.model.offload import Offloadable
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.generate import check_call
from lumina_jax.training.optimizer import trainable
from lumina_jax.training.run_config import RunConfig


def check(config: RunConfig, mesh: Mesh) -> None:
  """Compares sections of a config with each other and with the devices.

  Raises:
    ValueError: naming the keys that contradict each other.
  """
  plan, tokens = config.training, config.data.row_tokens
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if plan.batch_rows % (shards * plan.microbatches):
    parts = f" x {plan.microbatches} microbatches"
    raise ValueError(
      f"training.batch_rows = {plan.batch_rows} does not divide over data x "
      f"fsdp = {shards} devices{parts if plan.microbatches > 1 else ''}; "
      "choose a multiple of that, or another config.mesh"
    )
  if tokens % mesh.shape["context"]:
    raise ValueError(
      f"data.row_tokens = {tokens} does not divide over mesh.context = "
      f"{mesh.shape['context']} devices; choose a multiple of that"
    )
  describe_attention(config, mesh)
  trainable(config.optimizer, config.network.shapes())
  components = Components(
    MEDIA[config.medium],
    config.network,
    Offloadable.pinned(None),
    config.sampling,
    config.sizes,
  )
  try:
    check_call(components, plan.sample_prompts)
  except ValueError as error:
    raise ValueError(f"training.sample_prompts: {error}") from error


def describe_attention(config: RunConfig, mesh: Mesh) -> str:
  """Describes the attention of a run on a mesh."""
  tokens, _, samples = config.data.budget
  return attention.describe(config.model, mesh, tokens, samples > 1)
