"""Trains a network: python -m lumina_jax.train --config=... --workdir=...

Start the same command again to go on where the last checkpoint stands. SIGTERM
saves and ends it. Several processes train as one, see launch/.
"""

from __future__ import annotations

import contextlib
import json
import logging

import jax
import optax
from absl import flags
from etils import epath

from data_pipelines.bad_records import BadRecordCounter
from lumina_jax import media
from lumina_jax.commands import config_flag
from lumina_jax.commands import start as entry_point
from lumina_jax.files import schema
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.pretrained import encoders as frozen
from lumina_jax.pretrained.encoders import Encoders
from lumina_jax.runs import init_from, messages, previews, record, report
from lumina_jax.runs import workdir as workdirs
from lumina_jax.training import data, run_config
from lumina_jax.training import step as steps
from lumina_jax.training.aggregator import Window, Work
from lumina_jax.training.check import check
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.goodput import Ledger
from lumina_jax.training.loop import Loop
from lumina_jax.training.metrics import Metrics
from lumina_jax.training.nan_guard import Skips
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.profile import Profile
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState, abstract_state, create_state


def train(
  config: RunConfig,
  folder: epath.Path,
  profile_steps: str = "",
  allow_change: bool = False,
) -> TrainState:
  """Trains from the newest checkpoint in `folder`, or from scratch.

  Args:
    config: of the run.
    folder: its workdir.
    profile_steps: to trace, see `training.profile`.
    allow_change: whether a run may go on with other data.

  Raises:
    Preempted: once it was told to stop and has saved.
  """
  ledger, plan, network = Ledger(), config.training, config.network
  mesh = make_mesh(config.mesh)
  check(config, mesh)
  optimizer = make_optimizer(config.optimizer, plan.steps)
  profile = Profile(profile_steps, folder)
  medium = media.find(config.medium)
  encoders = frozen.of_run(config.encoders, medium, network)
  batches = data.make_batches(config, mesh, folder, encoders)

  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    preemption = stack.enter_context(Preemption())
    saved = stack.enter_context(Checkpoints(folder, plan.keep_checkpoints))
    state = saved.restore(abstract_state(network, optimizer, mesh))
    if state is None:
      state = first_state(config, optimizer, mesh)
    start = int(state.step)
    if start > plan.steps:
      raise ValueError(
        f"{folder} stands at step {start}, past training.steps = {plan.steps}"
      )
    processes.check_equal(batches.fingerprint, "fingerprint of the data")
    pinned = start > 0 and not allow_change
    processes.on_first(lambda: data.pin(folder, batches, pinned))
    processes.on_first(lambda: begin(config, folder, start))
    messages.announce(config, state, mesh, folder, batches)
    previews.preview_data(config, batches, encoders, folder)
    metrics = stack.enter_context(Metrics(folder, start))
    example = batches.batch(start)
    step = steps.compile_step(
      steps.configured(config, optimizer), network, optimizer, mesh, example
    )
    loop = Loop(
      config,
      steps.ahead(step, state, example, mesh, plan.batch_rows),
      batches,
      saved,
      Window(
        metrics,
        plan.log_every,
        ledger,
        Skips(
          plan.max_skipped, batches.names, saved.latest_step, int(state.skipped)
        ),
        BadRecordCounter(config.data.bad_limit),
        Work.of(network.model, plan.batch_rows, config.data.budget, mesh),
      ),
      preemption,
      profile,
      lambda state: draw(config, state, encoders, folder, preemption),
    )
    state = loop.run(state)
  messages.summarise(ledger, loop.window)
  return state


def draw(
  config: RunConfig,
  state: TrainState,
  encoders: Encoders,
  folder: epath.Path,
  preemption: Preemption,
) -> None:
  """Draws pictures of a state, and the report with them."""
  previews.preview_samples(config, state, encoders, folder, preemption.check)
  if not processes.is_first():
    return
  try:
    report.write(folder)
  except OSError as error:  # A full disk ends no run for a page's sake.
    logging.warning("the report was not written: %s", error)


def first_state(
  config: RunConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """A state to start a run with: random, or with weights from elsewhere."""
  start = config.init_from and init_from.open_start(
    config.network, config.init_from, config.init_strict
  )
  state = create_state(config.network, optimizer, mesh, config.seed)
  return init_from.begin_with(state, start) if start else state


def agree(config: RunConfig) -> None:
  """Checks that all processes train the same.

  Raises:
    ValueError: in all of them, naming the keys that differ.
  """
  said = processes.exchange(json.dumps(schema.to_dict(config)))
  first = run_config.parse(json.loads(said[0]))
  for number, text in enumerate(said):
    other = run_config.parse(json.loads(text))
    if differences := schema.differences(first, other):
      lines = "\n  ".join(differences)
      raise ValueError(
        f"process 0 and process {number} differ in their config:\n  {lines}\n"
        "Start all with the same flags"
      )


def begin(config: RunConfig, folder: epath.Path, step: int) -> None:
  """Writes down what is about to run."""
  run_config.save(config, folder)
  record.write(folder, config.seed, step)


@processes.only_first_prints()
def main(_) -> None:
  args = flags.FLAGS
  config = run_config.parse(args.config)
  agree(config)
  folder = workdirs.claim(config, args.workdir, args.allow_config_change)
  try:
    train(config, folder, args.profile_steps, args.allow_config_change)
  except Preempted:
    print(f"\n{messages.stopped(folder)}", flush=True)
    return
  except KeyboardInterrupt:
    saved = workdirs.has_checkpoint(folder)
    where = "goes on at the newest checkpoint" if saved else "starts anew"
    print(f"\nthe same command {where}")
    raise
  messages.farewell(folder, config)


def run() -> None:
  """Defines the flags and runs the command."""
  config_flag.define("configs/digits.py or configs/digits.py:flag")
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_bool(
    "allow_config_change", False, "Go on in a workdir whose config differs."
  )
  flags.DEFINE_string(
    "profile_steps", "", "Steps to trace, first:last, such as 10:13."
  )
  flags.mark_flags_as_required(["config", "workdir"])
  entry_point.run(main)


if __name__ == "__main__":
  run()
