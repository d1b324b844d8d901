"""Estimates memory per device without compiling."""

import math

import jax.numpy as jnp

from lumina_jax.planning.job import Job, count_parameters


def state_bytes(job: Job) -> int:
  """Bytes that stay on a device between steps.

  Parameters, EMA and two moments in float32 (for the sampler: parameters in
  bfloat16), each sharded over fsdp x context x tensor.
  """
  size = 2 if job.sample else 16
  return size * _local_parameters(job)


def minimum_bytes(job: Job) -> int:
  """A lower bound: the state, and what the backward pass reads."""
  return state_bytes(job) + (0 if job.sample else saved_bytes(job))


def expected_bytes(job: Job) -> int:
  """An estimate, rather too low than too high.

  The state, gradients in float32, saved activations, and one active block with
  its cotangents. Compiled programs of 0.8 and 5 billion parameters at 4096
  tokens took 1.07 to 1.16 times as much.
  """
  if job.sample:
    return minimum_bytes(job)
  gradients = 4 * _local_parameters(job)
  block = 2 * block_values(job) * job.device_tokens * itemsize(job)
  return minimum_bytes(job) + gradients + int(block)


def saved_bytes(job: Job) -> int:
  """Bytes that the forward pass saves on a device, see `remat.POLICIES`."""
  model = job.model
  values = {
    "none": block_values(job),
    "attention": model.width + model.width / job.axis_sizes["tensor"],
    "offload_hidden": 0,
  }.get(model.remat, model.width)
  return int(model.depth * job.device_tokens * values * itemsize(job))


def block_values(job: Job) -> float:
  """Values per token that the matrix products and gates of a block read."""
  model = job.model
  keys_values = 2 * model.kv_heads * model.head_dim
  values = 6 * model.width + 3 * model.ffn_width + keys_values
  return values / job.axis_sizes["tensor"]


def itemsize(job: Job) -> int:
  """Bytes of an activation."""
  return jnp.dtype(job.model.dtype).itemsize


def _local_parameters(job: Job) -> int:
  return count_parameters(job.config) // math.prod(job.mesh_shape[1:])
