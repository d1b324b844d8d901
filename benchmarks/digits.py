"""Sampling and training digits: python -m benchmarks.digits

Sampling: 100 single digits with 20 midpoint steps, guided and unguided, with
the shipped weights; the first call, which compiles, and the best of three more.
Training: milliseconds per step of configs/digits.py, useful tokens per second.
"""

import platform
import time
from collections.abc import Callable

import jax
import numpy as np

import configs.digits
from lumina_jax.commands import start as entry_point
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.training import run_config
from lumina_jax.training import step as steps
from lumina_jax.training.data import make_batches
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import create_state

REPEATS = 3
TRAIN_STEPS = 30


def seconds(work: Callable[[], object]) -> float:
  """Wall time of one call, until its arrays are ready."""
  start = time.perf_counter()
  jax.block_until_ready(work())
  return time.perf_counter() - start


def sampling() -> None:
  pipe = LuminaPipeline.from_pretrained()
  prompts = [str(i % 10) for i in range(100)]
  for guidance in (2.0, 1.0):

    def generate(guidance=guidance):
      return pipe(
        prompts,
        seed=list(range(100)),
        solver="midpoint",
        num_inference_steps=20,
        guidance_scale=guidance,
        output_type="uint8",
      ).images

    first = seconds(generate)
    best = min(seconds(generate) for _ in range(REPEATS))
    print(
      f"sampling 100 single digits, 20 midpoint steps, guidance {guidance:g}: "
      f"{best:.2f} s compiled, {first:.2f} s the first time"
    )


def training(variant: str) -> None:
  config = run_config.parse(configs.digits.get_config(variant))
  mesh, batches = make_mesh(config.mesh), make_batches(config)
  tx = make_optimizer(config.optimizer, config.training.steps)
  with jax.set_mesh(mesh):
    state = create_state(config.network, tx, mesh, config.seed)
    step = steps.compile_train_step(config, tx, state, batches.batch(0), mesh)
    placed = [steps.place_batch(batches.batch(i), mesh) for i in range(8)]
    useful = np.mean([np.count_nonzero(b[0].segments) for b in placed])
    state, _ = step(state, placed[0])
    times = []
    for i in range(TRAIN_STEPS):
      start = time.perf_counter()
      state, _ = step(state, placed[i % 8])
      jax.block_until_ready(state)
      times.append(time.perf_counter() - start)
  median = float(np.median(times))
  count = sum(x.size for x in jax.tree.leaves(state.params))
  print(
    f"training digits.py:{variant}, {count / 1e6:.2f} M parameters: "
    f"{median * 1e3:.0f} ms a step, {useful / median:,.0f} useful tokens/s"
  )


def main(_) -> None:
  device = jax.devices()[0].device_kind
  print(f"{platform.processor() or platform.machine()}, {device}")
  sampling()
  for variant in ("next", "flag"):
    training(variant)


if __name__ == "__main__":
  entry_point.run(main)
