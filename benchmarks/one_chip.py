"""Memory of a pipeline on one TPU chip: python -m benchmarks.one_chip

Compiles the programs that a call runs one after the other: the language model,
the sampler and the autoencoder's decoder, of the published 2B network at 1024 x
1024 in bfloat16. Prints the memory of each against the chip's. Nothing runs, so
no TPU is needed, but libtpu: pip install -e ".[tpu]".
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn

from lumina_jax.backbone import PUBLISHED
from lumina_jax.encoders import language, vae
from lumina_jax.interop.language_config import language_config
from lumina_jax.model.network import Network
from lumina_jax.parallel import topology
from lumina_jax.parallel.chips import CHIPS, GIB
from lumina_jax.parallel.compiled import OutOfMemory, compile_program
from lumina_jax.parallel.mesh import MeshConfig, make_mesh, replicated
from lumina_jax.parallel.topology import Topology
from lumina_jax.pretrained import defaults
from lumina_jax.sampling import program
from lumina_jax.sampling.batch import make_batches
from lumina_jax.sampling.options import configured_solver
from lumina_jax.sampling.request import Request
from lumina_jax.sampling.times import time_grid

# config.json of google/gemma-2b.
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
  """Functions and their arguments, as shapes or arrays, by name."""
  model, side = PUBLISHED["next_dit_t2i_2b_gqa"], pixels // 8
  network = Network(model, defaults.text_config(model))
  options, sizes = defaults.options(model), defaults.sizes(model, side)
  gemma = language_config(GEMMA_2B, "penultimate", "bfloat16")
  sdxl = vae.PUBLISHED["sdxl"]
  words = np.zeros((2, network.text_encoder.max_tokens), np.int32)
  text = np.zeros((words.shape[1], gemma.width), np.float32)
  request = Request(
    prompt="",
    grid=model.grid(side, side),
    text=text,
    negative=text,
    seed=0,
    number=0,
    guidance_scale=options.guidance_scale,
  )
  times = time_grid(options)
  (batch,) = make_batches([request], network, options, sizes, times)
  sampler = program.Program(network, configured_solver(options))
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  return {
    "language model": (
      functools.partial(language.encode_tokens, gemma),
      (_as(language.boxed_shapes(gemma), jnp.bfloat16), words, words),
    ),
    "sampler": (
      functools.partial(program.sample, program=sampler),
      (_as(boxed, jnp.bfloat16), batch.inputs),
    ),
    "decoder": (
      functools.partial(vae.decode, sdxl),
      (
        _as(vae.boxed_shapes(sdxl), jnp.float32),
        np.zeros((1, side, side, 4), np.float32),
      ),
    ),
  }


def _as(boxed: Any, dtype: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype), nn.unbox(boxed)
  )


def peak(function: Any, args: tuple, machine: Topology) -> int:
  """Bytes of the device that a program needs, arguments included."""
  mesh = make_mesh(MeshConfig(), list(machine.devices))
  args = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
    args,
  )
  with jax.set_mesh(mesh):  # Attention chooses its kernel by the mesh.
    lowered = jax.jit(function).lower(*args)
  found = compile_program(lowered, machine.devices)
  return found.needed if isinstance(found, OutOfMemory) else found.peak


def main(_) -> None:
  args = flags.FLAGS
  chip, machine = CHIPS[args.chip], topology.find(f"{args.chip}:1x1")
  print(f"one {chip.name} chip, {chip.usable / GIB} GiB; {args.pixels} pixels")
  total = 0
  for name, (function, inputs) in programs(args.pixels).items():
    start = time.perf_counter()
    needed = peak(function, inputs, machine)
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(inputs[0]))
    total += weights
    print(
      f"{name}: peak {needed / GIB:.2f} GiB, weights {weights / GIB:.2f} GiB; "
      f"compiled in {time.perf_counter() - start:.0f} s",
      flush=True,
    )
    if needed > chip.usable:
      excess = (needed - chip.usable) / GIB
      raise SystemExit(f"DOES NOT FIT: {excess:.2f} GiB too much")
  print(f"weights of all: {total / GIB:.2f} GiB")


if __name__ == "__main__":
  flags.DEFINE_enum("chip", "v5e", ["v5e", "v6e"], "Kind of chip.")
  flags.DEFINE_integer("pixels", 1024, "Side of the image.")
  app.run(main)
