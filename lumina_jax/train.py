"""Trains a network: python -m lumina_jax.train --config=... --workdir=...

Run the same command again to resume at the newest checkpoint. SIGTERM saves and
stops. Several processes train as one, see launch/.
"""

import contextlib

import jax
from absl import flags
from etils import epath

from lumina_jax import media
from lumina_jax.commands import config_flag
from lumina_jax.commands import start as entry_point
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.pretrained import encoders as frozen
from lumina_jax.runs import init_from, messages, previews, record, report
from lumina_jax.runs import workdir as workdirs
from lumina_jax.training import data, run_config
from lumina_jax.training.aggregator import make_aggregator
from lumina_jax.training.check import check, check_same_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.goodput import GoodputTracker
from lumina_jax.training.loop import TrainingLoop
from lumina_jax.training.metrics import MetricsWriter
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.preemption import Preempted, Preemption
from lumina_jax.training.profile import Profiler
from lumina_jax.training.restore import has_checkpoint
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState, abstract_state, create_state
from lumina_jax.training.step import compile_train_step


def train(
  config: RunConfig,
  folder: epath.Path,
  profile_steps: str = "",
  allow_change: bool = False,
) -> TrainState:
  """Trains from the newest checkpoint in `folder`, or from scratch.

  Args:
    config: config of the run.
    folder: its workdir.
    profile_steps: steps to trace, see `training.profile`.
    allow_change: whether a run may resume with other data.

  Raises:
    Preempted: after SIGTERM, once the state is saved.
  """
  goodput = GoodputTracker()
  network, plan = config.network, config.training
  profiler = Profiler(profile_steps, folder)
  mesh = make_mesh(config.mesh)
  check(config, mesh)
  optimizer = make_optimizer(config.optimizer, plan.steps)

  medium = media.find(config.medium)
  encoders = frozen.of_run(config.encoders, medium, network)
  batches = data.make_batches(config, mesh, folder, encoders)

  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    preemption = stack.enter_context(Preemption())
    checkpoints = Checkpoints(folder, plan.keep_checkpoints)
    stack.enter_context(checkpoints)
    state = checkpoints.restore(abstract_state(network, optimizer, mesh))
    if state is None:
      params = init_from.resolve(network, config.init_from, config.init_strict)
      state = create_state(network, optimizer, mesh, config.seed, params)
    start = int(state.step)
    if start > plan.steps:
      raise ValueError(
        f"{folder} is at step {start}, past training.steps = {plan.steps}"
      )

    def record_start():
      data.check_fingerprint(folder, batches, start > 0 and not allow_change)
      run_config.save(config, folder)
      record.add_start(folder, config.seed, start)

    processes.check_equal(batches.fingerprint, "fingerprint of the data")
    processes.on_first(record_start)
    messages.print_start(config, state, mesh, folder, batches)
    previews.preview_data(config, batches, encoders, folder)

    def sample(state):
      previews.preview_samples(config, state, encoders, folder, preemption.poll)
      report.update(folder)

    writer = stack.enter_context(MetricsWriter(folder, start))
    metrics = make_aggregator(
      config, mesh, writer, goodput, batches, checkpoints, state
    )
    first_batch = batches.batch(start)
    step = compile_train_step(config, optimizer, state, first_batch, mesh)
    loop = TrainingLoop(
      plan, step, batches, checkpoints, metrics, preemption, profiler, sample
    )
    state = loop.run(state)
  messages.print_goodput(metrics)
  return state


@processes.only_first_prints()
def main(_) -> None:
  args = flags.FLAGS
  config = run_config.parse(args.config)
  check_same_config(config)
  folder = workdirs.claim(config, args.workdir, args.allow_config_change)
  try:
    train(config, folder, args.profile_steps, args.allow_config_change)
  except Preempted:
    messages.print_preempted(folder)
    return
  except KeyboardInterrupt:
    messages.print_interrupted(has_checkpoint(folder))
    raise
  messages.print_end(folder, config)


def run() -> None:
  """Defines the flags and runs the command."""
  config_flag.define("configs/digits.py or configs/digits.py:flag")
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_bool(
    "allow_config_change", False, "Resume a run with another config or data."
  )
  flags.DEFINE_string(
    "profile_steps", "", "Steps to trace, first:last, such as 10:13."
  )
  flags.mark_flags_as_required(["config", "workdir"])
  entry_point.run(main)


if __name__ == "__main__":
  run()
