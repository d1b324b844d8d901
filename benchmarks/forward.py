"""Next-DiT here and in diffusers, timed in turn: python -m benchmarks.forward

The same weights in `DiT(cfg).apply` under jax.jit and, through `save_pytorch`,
in diffusers' LuminaNextDiT2DModel, eager and under torch.compile, on the same
inputs and with all threads. Forward, and the mean square of the output with its
gradient with respect to every parameter.

Each round calls every candidate once, so that other work on the machine slows
all of them alike. On a GPU:

  python -m benchmarks.forward --device=gpu --dtype=bfloat16 --sizes=128 \
    --network=next_dit_t2i_2b_gqa --batch=1
"""

import contextlib
import dataclasses
import os
import pathlib
import platform
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.peer import Candidates, Sample, Torch, Work
from lumina_jax import packing
from lumina_jax.backbone import PUBLISHED, DiT, ModelConfig, shapes
from lumina_jax.backbone.config import NEXT_T2I
from lumina_jax.commands import start as entry_point
from lumina_jax.tokens import Condition, Tokens

SMALL = ModelConfig(
  **NEXT_T2I
  | dict(
    patch=(2, 2),
    channels=4,
    width=512,
    depth=8,
    heads=8,
    kv_heads=2,
    cond_width=512,
    text_width=512,
  )
)
REMAT = (SMALL.remat, "none")
NETWORKS = {"small": SMALL} | {
  name: cfg for name, cfg in PUBLISHED.items() if "next_dit_t2i" in name
}
PAUSE = 0.05  # Seconds in which the threads of the last candidate go to sleep.


def random_params(cfg: ModelConfig) -> Any:
  """Weights with which every part of the network affects the output."""
  rng = np.random.default_rng(0)

  def random(path, leaf):
    x = 0.02 * rng.standard_normal(leaf.shape, np.float32)
    return 1 + x if path[-1].key == "scale" else x

  return jax.tree_util.tree_map_with_path(random, shapes(cfg))


def random_sample(
  cfg: ModelConfig, size: int, batch: int, words: int
) -> Sample:
  rng = np.random.default_rng(1)
  return Sample(
    rng.standard_normal((batch, size, size, cfg.channels), np.float32),
    Condition(
      time=rng.random((batch, 1), np.float32),
      text=rng.standard_normal((batch, words, cfg.text_width), np.float32),
      text_segments=np.ones((batch, words), np.int32),
    ),
  )


def make_tokens(cfg: ModelConfig, latents: np.ndarray) -> Tokens:
  """Rows of one sample without padding."""
  grid = cfg.grid(*latents.shape[1:3])
  axes, length = cfg.position_axes, grid.num_tokens
  return packing.stack(
    [
      packing.pack([grid], [patches], length, cfg.patch_dim, axes)
      for patches in grid.tokenize(latents)
    ]
  )


def our_forward(cfg: ModelConfig, params: Any, inputs: tuple) -> Candidates:
  def velocity(params, tokens, condition):
    return DiT(cfg).apply({"params": params}, tokens, condition)

  return {"ours": _jitted(velocity, params, *inputs)}


def our_training(cfg: ModelConfig, params: Any, inputs: tuple) -> Candidates:
  """With and without recomputation in the backward pass."""

  def loss(params, tokens, condition, cfg):
    velocity = DiT(cfg).apply({"params": params}, tokens, condition)
    return jnp.mean(velocity**2)

  def step(remat):
    other = dataclasses.replace(cfg, remat=remat)
    gradient = jax.value_and_grad(lambda *args: loss(*args, other))
    return _jitted(gradient, params, *inputs)

  return {f"remat={remat}": step(remat) for remat in REMAT}


def _jitted(function: Callable, *args: Any) -> Work:
  compiled = jax.jit(function).lower(*args).compile()
  return lambda: jax.block_until_ready(compiled(*args))


def in_turn(candidates: Candidates, rounds: int) -> dict[str, np.ndarray]:
  """Milliseconds of each candidate in each round, after two warm-up calls."""
  for work in [*candidates.values()] * 2:
    work()
  times = {name: [] for name in candidates}
  for _ in range(rounds):
    for name, work in candidates.items():
      time.sleep(PAUSE)
      start = time.perf_counter()
      work()
      times[name].append(1e3 * (time.perf_counter() - start))
  return {name: np.array(values) for name, values in times.items()}


def difference(cfg: ModelConfig, ours: Any, theirs: Any) -> str:
  """The largest difference, absolute and in standard deviations."""
  theirs = np.moveaxis(theirs.cpu().numpy(), 1, -1)
  grid = cfg.grid(*theirs.shape[1:3])
  ours = grid.detokenize(np.asarray(ours, np.float32))
  largest = np.abs(ours - theirs).max()
  return f"{largest:.1e} ({largest / theirs.std():.1e} std)"


def report(label: str, times: dict[str, np.ndarray]) -> None:
  """Prints a row: median (minimum) of each; the best of torch over ours."""
  cells = [
    f"{name} {np.median(values):.1f} ({values.min():.1f})"
    for name, values in times.items()
  ]
  our_name = next(iter(times))
  ratios = []
  for best in (np.median, np.min):
    theirs = [best(x) for name, x in times.items() if "torch" in name]
    ratios.append(min(theirs) / best(times[our_name]))
  print(
    f"| {label} | {' | '.join(cells)} | {ratios[0]:.2f} ({ratios[1]:.2f}) |",
    flush=True,
  )


def compare(
  cfg: ModelConfig, params: Any, torch: Torch, size: int, device: jax.Device
) -> None:
  """Measures one size of latents and prints two rows."""
  args = flags.FLAGS
  sample = random_sample(cfg, size, args.batch, args.words)
  tokens = make_tokens(cfg, sample.latents)
  inputs = jax.device_put((tokens, sample.condition), device)
  label = f"{size}x{size}, {tokens.ids.shape[1]} tokens"

  forward = our_forward(cfg, params, inputs) | torch.forward(sample)
  error = difference(cfg, forward["ours"](), forward["torch.compile"]())
  report(f"{label}, forward", in_turn(forward, args.rounds))
  torch.free()
  training = our_training(cfg, params, inputs) | torch.training(sample)
  report(f"{label}, and backward", in_turn(training, args.rounds))
  torch.free()
  print(f"  largest difference of outputs: {error}", flush=True)


def processor() -> str:
  """Name of the CPU."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()


def main(_) -> None:
  args = flags.FLAGS
  if args.device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
    raise ValueError("torch.compile needs a C++ compiler: apt-get install g++")
  cfg = dataclasses.replace(NETWORKS[args.network], dtype=args.dtype)
  params = random_params(cfg)
  torch = Torch(cfg, params, args.device, args.dtype)
  device = jax.devices(args.device)[0]
  params = jax.device_put(
    jax.tree.map(lambda x: x.astype(args.dtype), params), device
  )
  count = sum(x.size for x in jax.tree.leaves(params))
  name = processor() if args.device == "cpu" else device.device_kind
  print(
    f"{name}, {os.cpu_count()} cores (torch: {torch.threads} threads)\n"
    f"JAX {jax.__version__}, {torch.versions}; {args.dtype}\n"
    f"{args.network}: {cfg.depth} layers, {cfg.width} wide, {cfg.heads} heads, "
    f"{cfg.kv_heads} kv heads, {count / 1e6:.1f} M parameters; batch "
    f"{args.batch}, {args.words} words\n"
    f"ms, median (minimum) of {args.rounds} rounds; last, the best of torch "
    f"over ours, in training over remat={REMAT[0]}"
  )
  for size in map(int, args.sizes):
    compare(cfg, params, torch, size, device)


if __name__ == "__main__":
  # By default JAX would reserve three quarters of the GPU; PyTorch shares it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  flags.DEFINE_list("sizes", ["16", "32", "64"], "Sides of square latents.")
  flags.DEFINE_integer("rounds", 10, "Timed rounds.", lower_bound=1)
  flags.DEFINE_integer("batch", 2, "Samples of a batch.", lower_bound=1)
  flags.DEFINE_integer("words", 64, "Tokens of a caption.", lower_bound=1)
  flags.DEFINE_enum("network", "small", list(NETWORKS), "Network.")
  flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Device of both.")
  flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Weights, products of both."
  )
  entry_point.run(main)
