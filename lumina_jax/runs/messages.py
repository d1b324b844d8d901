"""What training prints: at its start, at its end, and where results lie."""

import shlex

import jax
from etils import epath
from jax.sharding import Mesh

from data_pipelines.batches import Batches
from data_pipelines.digits import DigitsConfig
from lumina_jax.parallel import processes
from lumina_jax.parallel.sharding_table import sharding_table
from lumina_jax.runs.previews import DATA, SAMPLES
from lumina_jax.training.aggregator import MetricsAggregator
from lumina_jax.training.check import describe_attention
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState


def print_start(
  config: RunConfig,
  state: TrainState,
  mesh: Mesh,
  folder: epath.Path,
  batches: Batches,
) -> None:
  """Prints what runs, on which devices, and where it writes."""
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
  origin = f"resumed at step {start}" if start else "from scratch"
  if config.init_from and not start:
    origin = f"from the weights in {config.init_from}"
  print(f"{plan.steps} steps, {origin}, into {folder}", flush=True)


def print_goodput(metrics: MetricsAggregator) -> None:
  """Prints how the time was spent, and what was skipped."""
  print(f"\n{metrics.goodput.summary()}; goodput {metrics.goodput_share:.1%}")
  if metrics.skipped:
    print(f"{metrics.skipped} updates were not finite and were skipped")
  if metrics.bad_records:
    print(f"{metrics.bad_records} bad records were left out")


def print_preempted(folder: epath.Path) -> None:
  """Prints that the run has saved and stopped."""
  print(
    f"\nstopped and saved in {folder}; the same command continues from there",
    flush=True,
  )


def print_interrupted(saved: bool) -> None:
  """Prints what the same command does next."""
  action = "resumes at the newest checkpoint" if saved else "starts anew"
  print(f"\nthe same command {action}")


def print_end(folder: epath.Path, config: RunConfig) -> None:
  """Prints where results lie, and the next commands."""
  plan = config.training
  prompt = shlex.quote(plan.sample_prompts[0])
  print(f"""
Done. In {folder}:
  {SAMPLES}/step_{plan.steps:06d}.png   samples at the end
  {SAMPLES}/{DATA}          training data
  report.html                 loss and samples by step; open it in a browser
  metrics.jsonl, tensorboard/ the numbers
  checkpoints/                weights and optimizer
Next:
  python -m lumina_jax.infer --workdir={folder} --prompt={prompt}""")
  if isinstance(config.data, DigitsConfig):
    print(f"  python -m lumina_jax.evaluate --workdir={folder}")
