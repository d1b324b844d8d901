"""The whole training step, here and in PyTorch: python -m benchmarks.train_step

Ours is the step of `lumina_jax.train`: `make_train_step` under `compile_step`,
rows of one sample. PyTorch's is the same step around diffusers' Next-DiT under
torch.compile: flow loss, gradients, clipping, fused AdamW, EMA; its attention
allows PyTorch's fast kernels (`torch_step.PlainAttention`). On both sides
parameters, moments and EMA are float32, products in the network's dtype. Both
start from the same weights, and the first step, with the same noise, must give
the same loss and gradient norm.

diffusers' attention to text has its own queries, so our networks have them too
(`text_query`): both sides have equal parameters and products.

On a CPU both take turns. On a GPU, where a state of 1.8 billion parameters does
not fit twice, PyTorch runs first and frees its memory. MFU counts products
once, without recomputation, over the chip's published peak in bfloat16. A part
of the cases on a GPU:

  python -m benchmarks.train_step --networks=600m --tokens=1024,4096
"""

import functools
import gc
import importlib.util
import itertools
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
  make_row,
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
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.optimizer_config import OptimizerConfig
from lumina_jax.training.state import TrainState, state_shardings

OPTIMIZER = OptimizerConfig(
  learning_rate=1e-9,  # Every step has nearly the same weights.
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
SEED, STEPS = 0, 1_000_000


class JaxSide:
  """Our step of one network, on the first device."""

  def __init__(self, cfg: ModelConfig, params: Any):
    self._cfg, self._params = cfg, params
    self._tx = make_optimizer(OPTIMIZER, STEPS)
    self._mesh = make_mesh(MeshConfig(), jax.devices()[:1])

  def start(self, case: Case, calls: int) -> tuple[Work, First]:
    """Compiles and runs the first step; see `TorchStep.start`."""
    network = _network(case.cfg)
    sample = case.sample
    batch = forward.make_tokens(case.cfg, sample.latents), sample.condition
    decay = OPTIMIZER.ema_decay
    step = steps.make_train_step(network, self._tx, TIMES, decay, SEED)
    with jax.set_mesh(self._mesh):
      state = self._state(network)
      batch = steps.place_batch(batch, self._mesh)
      jitted = steps.jit_train_step(step, network, self._tx, self._mesh, batch)
      compiled = jitted.lower(state, batch).compile()
    state, metrics = compiled(state, batch)

    def work():
      nonlocal state
      for _ in range(calls):
        state, _ = compiled(state, batch)
      jax.block_until_ready(state)

    return work, (float(metrics["loss"]), float(metrics["grad_norm"]))

  def _state(self, network: Network) -> TrainState:
    _, shardings = state_shardings(network, self._tx, self._mesh)
    params = jax.device_put({"backbone": self._params}, shardings.params)
    ema = jax.tree.map(jnp.copy, params)
    # Separate arrays, since the step donates each.
    zeros = (jnp.zeros((), jnp.int32) for _ in range(2))
    state = TrainState(*zeros, params, ema, self._tx.init(params))
    return jax.device_put(state, shardings)


class TorchSide:
  """PyTorch's step of one network."""

  def __init__(
    self, cfg: ModelConfig, params: Any, device: str, compiled: bool
  ):
    from benchmarks.torch_step import TorchStep

    self._step = TorchStep(cfg, params, device, OPTIMIZER, compiled)

  def start(self, case: Case, calls: int) -> tuple[Work, First]:
    """See `TorchStep.start`."""
    recompute = case.cfg.remat != "none"
    return self._step.start(case.sample, first_noise(case), recompute, calls)


def _network(cfg: ModelConfig) -> Network:
  return Network(cfg, TextFeaturesConfig(width=cfg.text_width))


def first_noise(case: Case) -> tuple[np.ndarray, np.ndarray]:
  """x0 and t of our first step, as `training.gradient` samples them."""
  sample, cfg = case.sample, case.cfg
  tokens: Tokens = forward.make_tokens(cfg, sample.latents)
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


Sides = dict[str, Callable[[ModelConfig, Any], Any]]


def measure(
  sides: Sides, cases: list[Case], calls: int, rounds: int
) -> dict[tuple[Case, str], Result]:
  """Times all cases of one network, its sides in turn.

  Cases that do not fit into memory have no result.
  """
  params = weights(cases[0].cfg)
  ready = {name: make(cases[0].cfg, params) for name, make in sides.items()}
  results = {}
  for case in cases:
    try:
      measured = _in_turn(ready, case, calls, rounds)
    except RuntimeError as error:
      if not _out_of_memory(error):
        raise
      measured = {}
    results |= {(case, name): result for name, result in measured.items()}
    for name in sides:
      print(f"  {_progress(name, case, measured)}", flush=True)
    gc.collect()
  return results


@functools.lru_cache(maxsize=1)
def weights(cfg: ModelConfig) -> Any:
  return forward.random_params(cfg)


def _in_turn(sides, case: Case, calls: int, rounds: int) -> dict[str, Result]:
  started = {name: side.start(case, calls) for name, side in sides.items()}
  times = forward.in_turn(
    {name: work for name, (work, _) in started.items()}, rounds
  )
  return {
    name: Result(float(np.median(ms)) / 1e3 / calls, started[name][1])
    for name, ms in times.items()
  }


def _out_of_memory(error: RuntimeError) -> bool:
  """Whether JAX or torch ran out of memory."""
  text = str(error)
  return "RESOURCE_EXHAUSTED" in text or "out of memory" in text


def _progress(name: str, case: Case, measured: dict[str, Result]) -> str:
  label = f"{name}, {case.network} at {case.tokens} tokens"
  if name not in measured:
    return f"{label}: does not fit into memory"
  loss, norm = measured[name].first
  return f"{label}: first loss {loss:.6g}, gradient norm {norm:.6g}"


def find_torch(with_torch: bool, compiled: bool) -> tuple[str, Sides]:
  """Describes PyTorch's side; returns it if it can be compared with."""
  if not with_torch:
    return "without PyTorch (--notorch)", {}
  missing = [
    name
    for name in ("torch", "diffusers")
    if not importlib.util.find_spec(name)
  ]
  if missing:
    return f"{' and '.join(missing)} not installed", {}
  from benchmarks import torch_step

  name, device = torch_step.describe()
  backend = jax.default_backend()
  if device != backend:
    return f"not compared with {name} on {device}", {}
  mode = "torch.compile" if compiled else "eager (--nocompile)"
  if compiled and not shutil.which(os.environ.get("CXX", "g++")):
    compiled, mode = False, "eager, because torch.compile finds no g++"
  make = functools.partial(TorchSide, device=device, compiled=compiled)
  return f"{name}, diffusers' Next-DiT, {mode}", {"torch": make}


def measure_all(
  sides: Sides,
  cases: dict[str, list[Case]],
  together: bool,
  calls: int,
  rounds: int,
) -> dict[tuple[Case, str], Result]:
  """Measures both sides in turn, or all cases of PyTorch and then ours."""
  groups = [sides]
  if not together:
    groups = [{name: sides[name]} for name in reversed(sides)]
  results = {}
  for group in groups:
    for of_network in cases.values():
      results |= measure(group, of_network, calls, rounds)
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
  peer, torch = find_torch(args.torch, args.compile)
  sides: Sides = {"ours": JaxSide} | torch
  cases = make_cases(args)
  first = next(iter(cases.values()))[0]
  print(
    f"{forward.processor() if on_cpu else device.device_kind}, "
    f"{os.cpu_count()} cores\nJAX {jax.__version__} on {device.platform}; "
    f"{peer}\nproducts in {first.cfg.dtype}, text of {first.words} tokens, "
    f"unroll {first.cfg.unroll}; median of {args.rounds} rounds of {calls} "
    f"steps, {'in turn' if together else 'one side after the other'}",
    flush=True,
  )
  results = measure_all(sides, cases, together, calls, args.rounds)
  names, peak = list(sides), peak_flops()
  print()
  print_head(columns(names, peak))
  for case in itertools.chain.from_iterable(cases.values()):
    measured = {n: results[case, n] for n in names if (case, n) in results}
    print_row(make_row(case, names, measured, peak))
    if len(measured) == 2:
      check(case, measured["ours"], measured["torch"])


if __name__ == "__main__":
  # PyTorch uses the GPU first; JAX may then use as much of it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  flags.DEFINE_multi_enum("networks", None, list(NETWORKS), "Networks.")
  flags.DEFINE_list("tokens", None, "Tokens of a row, squares.")
  flags.DEFINE_integer("row_tokens", None, "Tokens of all rows.")
  flags.DEFINE_integer("words", 256, "Tokens of a caption.", lower_bound=1)
  flags.DEFINE_enum("dtype", None, [*TOLERANCE], "Dtype of products.")
  flags.DEFINE_string("remat", "auto", "A policy, or auto: by memory.")
  flags.DEFINE_integer("unroll", 1, "Layers per iteration of our scan.")
  flags.DEFINE_bool("torch", True, "Whether to compare with PyTorch.")
  flags.DEFINE_bool("compile", True, "Whether to use torch.compile.")
  flags.DEFINE_bool("together", None, "In turn; default: on a CPU.")
  flags.DEFINE_integer("calls", None, "Successive steps.", lower_bound=1)
  flags.DEFINE_integer("rounds", 8, "Timed rounds.", lower_bound=1)
  entry_point.run(main)
