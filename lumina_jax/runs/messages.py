"""What training says: at its start, at its end, and where things lie."""

from __future__ import annotations

import shlex

import jax
from etils import epath
from jax.sharding import Mesh

from data_pipelines.batches import Batches
from data_pipelines.digits import DigitsConfig
from lumina_jax.parallel import processes
from lumina_jax.parallel.sharding_table import sharding_table
from lumina_jax.runs.previews import DATA, SAMPLES
from lumina_jax.training.aggregator import Window
from lumina_jax.training.check import describe_attention
from lumina_jax.training.goodput import Ledger
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState


def announce(
  config: RunConfig,
  state: TrainState,
  mesh: Mesh,
  folder: epath.Path,
  batches: Batches,
) -> None:
  """Says what is about to run, where, and where it writes."""
  plan, start = config.training, int(state.step)
  count = sum(x.size for x in jax.tree.leaves(state.params))
  degrees = ", ".join(f"{k} {v}" for k, v in mesh.shape.items() if v > 1)
  several = processes.count()
  among = f" in {several} processes" if several > 1 else ""
  print(
    f"{count / 1e6:.2f} M parameters on {mesh.size} x "
    f"{mesh.devices.flat[0].device_kind}{among} ({degrees or 'one device'})"
  )
  print(sharding_table(state.params, state.ema, state.opt_state))
  print(describe_attention(config, mesh))
  print(
    f"batches of {plan.batch_rows} rows of {config.data.row_tokens} tokens, "
    f"{batches.usage:.0%} of them used, {batches.per_epoch:.1f} in an epoch"
  )
  where = f"resumed at step {start}" if start else "from scratch"
  if config.init_from and not start:
    where = f"from the weights in {config.init_from}"
  print(f"{plan.steps} steps, {where}, into {folder}", flush=True)


def summarise(ledger: Ledger, window: Window) -> None:
  """Says where the time of a start went."""
  print(f"\n{ledger.summary()}; goodput {window.goodput:.1%}")
  if window.skipped:
    print(f"{window.skipped} updates were not finite and were skipped")
  if window.bad_records:
    print(f"{window.bad_records} broken records were left out")


def stopped(folder: epath.Path) -> str:
  """Says that a run was told to stop and has saved."""
  return f"stopped and saved in {folder}; the same command goes on from there"


def farewell(folder: epath.Path, config: RunConfig) -> None:
  """Says where everything lies and what to type next."""
  plan = config.training
  prompt = shlex.quote(plan.sample_prompts[0])
  print(f"""
Done. In {folder}:
  {SAMPLES}/step_{plan.steps:06d}.png   samples at the end
  {SAMPLES}/{DATA}          what it was trained on
  report.html                 loss, samples by step; open it in a browser
  metrics.jsonl, tensorboard/ the numbers
  checkpoints/                weights and optimizer
Next:
  python -m lumina_jax.sample --workdir={folder} --prompt={prompt}""")
  if isinstance(config.data, DigitsConfig):
    print(f"  python -m lumina_jax.evaluate --workdir={folder}")
