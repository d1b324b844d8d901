"""Validates the config before training starts."""

import json

from jax.sharding import Mesh

from lumina_jax.backbone import attention
from lumina_jax.files import schema
from lumina_jax.model.offload import Offloadable
from lumina_jax.parallel import processes
from lumina_jax.sampling.generate import check_call
from lumina_jax.training import run_config
from lumina_jax.training.parameter_groups import trainable_mask
from lumina_jax.training.run_config import RunConfig


def check(config: RunConfig, mesh: Mesh) -> None:
  """Checks sections of a config against each other and against the devices.

  Raises:
    ValueError: naming the keys that contradict each other.
  """
  plan, tokens = config.training, config.data.row_tokens
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if plan.batch_rows % (shards * plan.microbatches):
    factor = f" x {plan.microbatches} microbatches"
    raise ValueError(
      f"training.batch_rows = {plan.batch_rows} does not divide over data x "
      f"fsdp = {shards} devices{factor if plan.microbatches > 1 else ''}; "
      "choose a multiple of that, or another config.mesh"
    )
  if tokens % mesh.shape["context"]:
    raise ValueError(
      f"data.row_tokens = {tokens} does not divide over mesh.context = "
      f"{mesh.shape['context']} devices; choose a multiple of that"
    )
  describe_attention(config, mesh)
  trainable_mask(config.optimizer, config.network.shapes())
  try:
    check_call(config.components(Offloadable.pinned(None)), plan.sample_prompts)
  except ValueError as error:
    raise ValueError(f"training.sample_prompts: {error}") from error


def describe_attention(config: RunConfig, mesh: Mesh) -> str:
  """Describes the attention of a run on a mesh.

  Raises:
    ValueError: if its kernel or sequence split does not fit the mesh.
  """
  tokens, _, samples = config.data.budget
  return attention.describe(config.model, mesh, tokens, samples > 1)


def check_same_config(config: RunConfig) -> None:
  """Checks that all processes have the same config.

  Raises:
    ValueError: in all processes, naming the keys that differ.
  """
  texts = processes.exchange(json.dumps(schema.to_dict(config)))
  first, *others = (run_config.parse(json.loads(text)) for text in texts)
  for number, other in enumerate(others, 1):
    if differences := schema.differences(first, other):
      lines = "\n  ".join(differences)
      raise ValueError(
        f"process 0 and process {number} differ in their config:\n  {lines}\n"
        "Start all with the same flags"
      )
