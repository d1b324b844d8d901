"""The whole training step, here and in PyTorch: python -m benchmarks.train_step

Ours is what `lumina_jax.train` runs: `make_train_step` under `compile_step`,
rows of one sample. Theirs is the same step around diffusers' Next-DiT under
torch.compile: flow loss, gradients, clipping, fused AdamW, EMA; its attention
is written so that PyTorch may use its fast kernels (`torch_step.Plain`). On
both sides parameters, moments and EMA are float32, products in the network's
dtype; both start from the same weights, and the first step, on the same noise,
has to give the same loss and norm of the gradient.

diffusers gives text queries of their own, so our networks have them here too
(`text_query`): as many parameters and products on both sides.

On a CPU the two take turns. On a GPU each has it for itself, PyTorch first: a
state of 1.8 billion parameters does not fit twice, and what PyTorch frees it
can give back. MFU counts products once, without recomputation, over the chip's
published peak in bfloat16. A part of what a GPU is given:

  python -m benchmarks.train_step --networks=600m --tokens=1024,4096
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import forward
from benchmarks.peer import Work
from benchmarks.table import print_head, print_row
from benchmarks.train_cases import NETWORKS, Case, make_cases
from benchmarks.train_table import (
  TOLERANCE,
  First,
  Result,
  check,
  columns,
  line,
  peak_flops,
)
from lumina_jax.backbone import ModelConfig
from lumina_jax.commands import start as entry_point
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.noise import sample_keys, token_noise
from lumina_jax.model.network import Network
from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.tokens import Tokens
from lumina_jax.training import step as steps
from lumina_jax.training.optimizer import OptimizerConfig, make_optimizer
from lumina_jax.training.state import TrainState, state_shardings

OPTIMIZER = OptimizerConfig(
  # So small that every step sees the same weights; it costs the same.
  learning_rate=1e-9,
  warmup_steps=0,
  decay="constant",
  b1=0.9,
  b2=0.95,
  eps=1e-8,
  weight_decay=0.01,
  clip=1.0,
  ema_decay=0.9999,
)
TIMES = TimeDistribution("uniform")
SEED, ENOUGH_STEPS = 0, 1_000_000


class Ours:
  """The step of one network on the first device."""

  def __init__(self, cfg: ModelConfig, params: Any):
    self._cfg, self._params = cfg, params
    self._tx = make_optimizer(OPTIMIZER, ENOUGH_STEPS)
    self._mesh = make_mesh(MeshConfig(), jax.devices()[:1])

  def begin(self, case: Case, calls: int) -> tuple[Work, First]:
    """Compiles and does the first step; see `TorchStep.begin`."""
    network = _network(case.cfg)
    sample = case.sample
    batch = forward.tokens_of(case.cfg, sample.latents), sample.condition
    decay = OPTIMIZER.ema_decay
    pure = steps.make_train_step(network, self._tx, TIMES, decay, SEED)
    with jax.set_mesh(self._mesh):
      state = self._state(network)
      batch = steps.place_batch(batch, self._mesh)
      jitted = steps.compile_step(pure, network, self._tx, self._mesh, batch)
      compiled = jitted.lower(state, batch).compile()
    state, metrics = compiled(state, batch)
    held = [state]

    def work():
      for _ in range(calls):
        held[0], _ = compiled(held[0], batch)
      jax.block_until_ready(held[0])

    return work, (float(metrics["loss"]), float(metrics["grad_norm"]))

  def _state(self, network: Network) -> TrainState:
    _, placed = state_shardings(network, self._tx, self._mesh)
    params = jax.device_put({"backbone": self._params}, placed.params)
    ema = jax.tree.map(jnp.copy, params)
    # Two arrays, since the step gives each away.
    zeros = (jnp.zeros((), jnp.int32) for _ in range(2))
    state = TrainState(*zeros, params, ema, self._tx.init(params))
    return jax.device_put(state, placed)


class Theirs:
  """The step of one network in PyTorch."""

  def __init__(
    self, cfg: ModelConfig, params: Any, device: str, compiled: bool
  ):
    from benchmarks.torch_step import TorchStep

    self._step = TorchStep(cfg, params, device, OPTIMIZER, compiled)

  def begin(self, case: Case, calls: int) -> tuple[Work, First]:
    """See `TorchStep.begin`."""
    recompute = case.cfg.remat != "none"
    return self._step.begin(case.sample, first_noise(case), recompute, calls)


def _network(cfg: ModelConfig) -> Network:
  return Network(cfg, TextFeaturesConfig(width=cfg.text_width))


def first_noise(case: Case) -> tuple[np.ndarray, np.ndarray]:
  """x0 and t of our first step, drawn like `training.step.flow_loss` does."""
  sample, cfg = case.sample, case.cfg
  tokens: Tokens = forward.tokens_of(cfg, sample.latents)
  key = jax.random.fold_in(jax.random.key(SEED), 0)
  keys = sample_keys(key, jnp.asarray(sample.condition.sample_ids))
  keys_time, keys_noise = (
    jax.vmap(jax.vmap(lambda k, i=i: jax.random.fold_in(k, i)))(keys)
    for i in range(2)
  )
  x0 = token_noise(keys_noise, jnp.asarray(tokens.segments), cfg.patch_dim)
  grid = cfg.grid(*sample.latents.shape[1:3])
  x0 = grid.detokenize(np.asarray(x0))
  return x0, np.array(TIMES.sample(keys_time))[:, 0]


Makers = dict[str, Callable[[ModelConfig, Any], Any]]


def measure(
  makers: Makers, cases: list[Case], calls: int, rounds: int
) -> dict[tuple[Case, str], Result]:
  """Times all cases of one network, its makers taking turns.

  What does not fit is left out.
  """
  params = weights(cases[0].cfg)
  sides = {name: make(cases[0].cfg, params) for name, make in makers.items()}
  results = {}
  for case in cases:
    try:
      taken = _in_turn(sides, case, calls, rounds)
    except RuntimeError as error:
      if not _out_of_memory(error):
        raise
      taken = {}
    results |= {(case, name): result for name, result in taken.items()}
    for name in sides:
      print(f"  {_progress(name, case, taken)}", flush=True)
    gc.collect()
  return results


@functools.lru_cache(maxsize=1)
def weights(cfg: ModelConfig) -> Any:
  return forward.random_params(cfg)


def _in_turn(sides, case: Case, calls: int, rounds: int) -> dict[str, Result]:
  begun = {name: side.begin(case, calls) for name, side in sides.items()}
  times = forward.in_turn(
    {name: work for name, (work, _) in begun.items()}, rounds
  )
  return {
    name: Result(float(np.median(ms)) / 1e3 / calls, begun[name][1])
    for name, ms in times.items()
  }


def _out_of_memory(error: RuntimeError) -> bool:
  """JAX says RESOURCE_EXHAUSTED, torch "out of memory"."""
  text = str(error)
  return "RESOURCE_EXHAUSTED" in text or "out of memory" in text


def _progress(name: str, case: Case, taken: dict[str, Result]) -> str:
  where = f"{name}, {case.network} at {case.tokens} tokens"
  if name not in taken:
    return f"{where}: does not fit"
  loss, norm = taken[name].first
  return f"{where}: first loss {loss:.6g}, norm of its gradient {norm:.6g}"


def find_torch(wanted: bool, compiled: bool) -> tuple[str, Makers]:
  """What there is to compare with, in words, and its maker."""
  if not wanted:
    return "ours alone, as asked", {}
  missing = [
    name
    for name in ("torch", "diffusers")
    if not importlib.util.find_spec(name)
  ]
  if missing:
    return f"{' and '.join(missing)} not installed: ours alone", {}
  from benchmarks import torch_step

  name, device = torch_step.describe()
  backend = jax.default_backend()
  if device != backend:
    return f"{name} runs on {device}, JAX on {backend}: ours alone", {}
  if compiled and not shutil.which(os.environ.get("CXX", "g++")):
    compiled, why = False, "eager, since torch.compile finds no g++"
  else:
    why = "torch.compile" if compiled else "eager, as asked"
  make = functools.partial(Theirs, device=device, compiled=compiled)
  return f"{name}, diffusers' Next-DiT, {why}", {"torch": make}


def measure_all(
  makers: Makers,
  cases: dict[str, list[Case]],
  together: bool,
  calls: int,
  rounds: int,
) -> dict[tuple[Case, str], Result]:
  """Both sides in turn, or all of PyTorch's and then ours."""
  groups = [makers]
  if not together:
    groups = [{name: makers[name]} for name in reversed(makers)]
  results = {}
  for group in groups:
    for some in cases.values():
      results |= measure(group, some, calls, rounds)
      gc.collect()
    if "torch" in group:
      from benchmarks import torch_step

      torch_step.release()
  return results


def main(_) -> None:
  args = flags.FLAGS
  device = jax.devices()[0]
  on_cpu = device.platform == "cpu"
  calls = args.calls or (1 if on_cpu else 5)
  together = on_cpu if args.together is None else args.together
  found, torch = find_torch(args.torch, args.compile)
  makers: Makers = {"ours": Ours} | torch
  cases = make_cases(args)
  some = next(iter(cases.values()))[0]
  print(
    f"{forward.processor() if on_cpu else device.device_kind}, "
    f"{os.cpu_count()} cores\nJAX {jax.__version__} on {device.platform}; "
    f"{found}\nproducts in {some.cfg.dtype}, text of {some.words} tokens, "
    f"unroll {some.cfg.unroll}; median of {args.rounds} rounds of {calls} "
    f"steps, {'in turn' if together else 'one side after the other'}",
    flush=True,
  )
  results = measure_all(makers, cases, together, calls, args.rounds)
  sides, peak = list(makers), peak_flops()
  print()
  print_head(columns(sides, peak))
  for case in (case for some in cases.values() for case in some):
    here = {n: results[case, n] for n in sides if (case, n) in results}
    print_row(line(case, sides, here, peak))
    if len(here) == 2:
      check(case, here["ours"], here["torch"])


if __name__ == "__main__":
  # PyTorch has the GPU first; then ours may take as much of it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  flags.DEFINE_multi_enum("networks", None, list(NETWORKS), "Which networks.")
  flags.DEFINE_list("tokens", None, "Tokens of a row: squares.")
  flags.DEFINE_integer("row_tokens", None, "Rows fill so many tokens.")
  flags.DEFINE_integer("words", 256, "Tokens of a caption.", lower_bound=1)
  flags.DEFINE_enum("dtype", None, [*TOLERANCE], "Of products.")
  flags.DEFINE_string("remat", "auto", "A policy, or by what fits.")
  flags.DEFINE_integer("unroll", 1, "Layers an iteration of our scan.")
  flags.DEFINE_bool("torch", True, "Whether to compare with PyTorch.")
  flags.DEFINE_bool("compile", True, "Whether PyTorch compiles.")
  flags.DEFINE_bool("together", None, "In turn; on a CPU by default.")
  flags.DEFINE_integer("calls", None, "Steps in a row.", lower_bound=1)
  flags.DEFINE_integer("rounds", 8, "Rounds that are timed.", lower_bound=1)
  entry_point.run(main)
