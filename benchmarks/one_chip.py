"""What a pipeline takes of one TPU chip: python -m benchmarks.one_chip

Compiles, for a chip that need not be there, what a call runs one after the
other: the language model, the sampler and the autoencoder's decoder, of the
published 2B network at 1024 x 1024 in bfloat16. Prints the memory of each
against the chip's. Needs libtpu: pip install -e ".[tpu]".
"""

from __future__ import annotations

import os

# Before JAX is imported: it runs on the CPU, and libtpu only compiles.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn
from jax.experimental import topologies

from lumina_jax.backbone import PUBLISHED
from lumina_jax.encoders import language, vae
from lumina_jax.interop.language_config import language_config
from lumina_jax.model.network import Network
from lumina_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from lumina_jax.pretrained import defaults
from lumina_jax.sampling import batch as pictures
from lumina_jax.sampling import program as sampler
from lumina_jax.sampling import times as time_grid

GIB = 2**30
USABLE = {"v5e": 15.75, "v6e": 31.25}  # GiB that the compiler may fill.
# What config.json of google/gemma-2b says.
GEMMA_2B = dict(
  model_type="gemma",
  vocab_size=256_000,
  hidden_size=2048,
  num_hidden_layers=18,
  num_attention_heads=8,
  num_key_value_heads=1,
  head_dim=256,
  intermediate_size=16_384,
  hidden_act="gelu_pytorch_tanh",
  rms_norm_eps=1e-6,
  rope_theta=10_000.0,
  max_position_embeddings=8192,
)


def programs(pixels: int) -> dict[str, tuple[Any, tuple]]:
  """Functions and the shapes that they are called with, by name."""
  model = PUBLISHED["next_dit_t2i_2b_gqa"]
  network = Network(model, defaults.text(model))
  sampling = defaults.sampling(model, pixels // 8)
  reader = language_config(GEMMA_2B, "penultimate", "bfloat16")
  painter = vae.PUBLISHED["sdxl"]
  side = pixels // 8
  words = np.zeros((2, network.text_encoder.max_tokens), np.int32)
  features = np.zeros((words.shape[1], reader.width), np.float32)
  picture = pictures.Picture(
    "",
    model.grid(side, side),
    features,
    features,
    0,
    0,
    sampling.guidance_scale,
  )
  times = time_grid.choose(sampling)
  (batch,) = pictures.batches([picture], network, sampling, times)
  sample = functools.partial(
    sampler.sample, network=network, solver=sampling.method
  )
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  return {
    "language model": (
      functools.partial(language.encode_tokens, reader),
      (_in(language.boxed_shapes(reader), jnp.bfloat16), words, words),
    ),
    "sampler": (sample, (_in(boxed, jnp.bfloat16), batch.request)),
    "decoder": (
      lambda params, z: vae.decode(painter, params, z),
      (
        _in(vae.boxed_shapes(painter), jnp.float32),
        np.zeros((1, side, side, 4), np.float32),
      ),
    ),
  }


def _in(boxed: Any, dtype: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype), nn.unbox(boxed)
  )


def peak(function: Any, args: tuple, device: Any) -> int:
  """Bytes of a device that a program takes, arguments included."""
  mesh = make_mesh(MeshConfig(), [device])
  args = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
    args,
  )
  with jax.set_mesh(mesh):  # It tells attention what it is compiled for.
    compiled = jax.jit(function).lower(*args).compile()
  return compiled.memory_analysis().peak_memory_in_bytes


def main(_) -> None:
  chip = flags.FLAGS.chip
  topology = topologies.get_topology_desc(
    platform="tpu",
    topology_name=f"{chip}:1x1",
    chips_per_host_bounds=(1, 1, 1),
  )
  print(f"one {chip} chip, {USABLE[chip]} GiB; {flags.FLAGS.pixels} pixels")
  total = 0
  for name, (function, args) in programs(flags.FLAGS.pixels).items():
    began = time.perf_counter()
    taken = peak(function, args, topology.devices[0]) / GIB
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(args[0]))
    total += weights / GIB
    print(
      f"{name}: peak {taken:.2f} GiB, of it weights {weights / GIB:.2f}; "
      f"compiled in {time.perf_counter() - began:.0f} s",
      flush=True,
    )
    if taken > USABLE[chip]:
      raise SystemExit(f"DOES NOT FIT: {taken - USABLE[chip]:.2f} GiB too much")
  print(f"all weights together: {total:.2f} GiB")


if __name__ == "__main__":
  flags.DEFINE_enum("chip", "v5e", list(USABLE), "Kind of chip.")
  flags.DEFINE_integer("pixels", 1024, "Along a side.")
  app.run(main)
