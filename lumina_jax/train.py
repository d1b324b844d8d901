"""Trains a network: python -m lumina_jax.train --config=... --workdir=...

Start the same command again to go on where the last checkpoint stands.
"""

from __future__ import annotations

import contextlib
import shlex

import jax
import optax
from absl import flags
from etils import epath
from ml_collections import config_flags

from data_pipelines.batches import Batches
from data_pipelines.digits import DigitCanvases, DigitsConfig, split
from data_pipelines.source import Source
from data_pipelines.synthetic import SyntheticConfig, SyntheticLatents
from lumina_jax import config as configs
from lumina_jax import entry_point
from lumina_jax import workdir as workdirs
from lumina_jax.backbone import attention
from lumina_jax.config import RunConfig
from lumina_jax.interop.formats import open_weights
from lumina_jax.network import Network
from lumina_jax.parallel import inventory
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.reporting import picture, record, report
from lumina_jax.reporting.progress import Progress
from lumina_jax.training import step as steps
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.metrics import Metrics, Window
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import (
  TrainState,
  abstract_state,
  begin_with,
  check_same_network,
  create_state,
)

SAMPLES = "samples"


def train(config: RunConfig, folder: epath.Path) -> TrainState:
  """Trains from the newest checkpoint in `folder`, or from scratch."""
  network, plan = config.network, config.training
  mesh = make_mesh(config.mesh)
  check(config, mesh)
  optimizer = make_optimizer(config.optimizer, plan.steps)
  batches = make_batches(config, mesh)

  with (
    jax.set_mesh(mesh),
    contextlib.closing(Checkpoints(folder, plan.keep_checkpoints)) as saved,
  ):
    state = saved.restore(abstract_state(network, optimizer, mesh))
    if state is None:
      state = first_state(config, optimizer, mesh)
    start = int(state.step)
    if start > plan.steps:
      raise ValueError(
        f"{folder} stands at step {start}, past training.steps = {plan.steps}"
      )
    configs.save(config, folder)
    announce(config, state, mesh, folder)
    record.write(folder, config.seed, start)

    decay = config.optimizer.ema_decay
    train_step = steps.compile_step(
      steps.make_train_step(
        network, optimizer, config.time, decay, config.seed
      ),
      network,
      optimizer,
      mesh,
      batches.batch(0),
    )
    with (
      contextlib.closing(Metrics(folder, start)) as metrics,
      Progress("training", plan.steps, start) as progress,
    ):
      window = Window(metrics, plan.log_every)
      for number, batch in enumerate(
        batches.read(start, plan.steps), start + 1
      ):
        state, values = train_step(
          state, steps.place_batch(batch, mesh, plan.batch_rows)
        )
        window.add(number, values)
        last = number == plan.steps
        if last or number % plan.checkpoint_every == 0:
          window.finish()  # Nothing that is not finite reaches the disk.
          saved.save(state)
        if last:
          window.write()
        if not last and number % plan.sample_every == 0:
          with progress.paused(), window.paused():
            draw_samples(config, network, state, folder)
            report.write(folder)
        progress.show(*window.shown)

    draw_samples(config, network, state, folder)
    report.write(folder)
  return state


def first_state(
  config: RunConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """A state to start a run with: random, or with weights from elsewhere."""
  if not config.init_from:
    return create_state(config.network, optimizer, mesh, config.seed)
  weights = open_weights(config.init_from)
  check_same_network(config.model, weights, config.init_from)
  state = create_state(config.network, optimizer, mesh, config.seed)
  return begin_with(state, weights)


def check(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
  """Finds at the start what would fail later.

  Raises:
    ValueError: naming the keys that do not go together.
  """
  if jax.process_count() > 1:
    raise ValueError(
      f"{jax.process_count()} processes: training runs in one process only yet"
    )
  rows, tokens = config.training.batch_rows, config.data.row_tokens
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if rows % shards:
    raise ValueError(
      f"training.batch_rows = {rows} does not divide over data x fsdp = "
      f"{shards} devices; choose a multiple of that, or another config.mesh"
    )
  if tokens % mesh.shape["context"]:
    raise ValueError(
      f"data.row_tokens = {tokens} does not divide over mesh.context = "
      f"{mesh.shape['context']} devices; choose a multiple of that"
    )
  describe_attention(config, mesh)
  pipe = LuminaPipeline(config.network, None, config.sampling)
  try:
    pipe.pictures(config.training.sample_prompts)
  except ValueError as error:
    raise ValueError(f"training.sample_prompts: {error}") from error


def make_batches(
  config: RunConfig, mesh: jax.sharding.Mesh | None = None
) -> Batches:
  """The batches of a run, each a pure function of its number.

  With a mesh, what this process holds of them.
  """
  rows = config.training.batch_rows
  share = steps.process_rows(rows, mesh) if mesh else None
  return Batches(
    make_source(config), config.data.budget, rows, config.seed, share
  )


def make_source(config: RunConfig) -> Source:
  """The data of a run, by record."""
  data, model, seed = config.data, config.model, config.seed
  tokenize = config.network.tokenize
  match data:
    case DigitsConfig():
      digits, _ = split(data.held_out)
      return DigitCanvases(data, digits, model.grid, tokenize, seed)
    case SyntheticConfig():
      return SyntheticLatents(data, model.channels, model.grid, tokenize, seed)


def draw_samples(
  config: RunConfig,
  network: Network,
  state: TrainState,
  folder: epath.Path,
) -> None:
  """Writes a picture of the configured prompts, from the averaged weights."""
  plan = config.training
  pipe = LuminaPipeline(network, state.ema, config.sampling)
  try:
    images = pipe(
      plan.sample_prompts, num_images_per_prompt=plan.samples_per_prompt
    ).images
  except FloatingPointError as error:
    # Whether to go on is for the loss to say.
    print(f"no picture at step {int(state.step)}: {error}", flush=True)
    return
  captions = [
    p for p in plan.sample_prompts for _ in range(plan.samples_per_prompt)
  ]
  (folder / SAMPLES).mkdir(exist_ok=True)
  picture.save(
    picture.contact_sheet(images, captions),
    folder / SAMPLES / f"step_{int(state.step):06d}.png",
  )


def announce(
  config: RunConfig, state: TrainState, mesh: jax.sharding.Mesh, folder
) -> None:
  """Says what is about to run, where, and where it writes."""
  count = sum(x.size for x in jax.tree.leaves(state.params))
  degrees = ", ".join(f"{k} {v}" for k, v in mesh.shape.items() if v > 1)
  print(
    f"{count / 1e6:.2f} M parameters on {mesh.size} x "
    f"{mesh.devices.flat[0].device_kind} ({degrees or 'one device'})"
  )
  print(inventory.describe(state.params, state.ema, state.opt_state))
  print(describe_attention(config, mesh))
  start = int(state.step)
  where = f"resumed at step {start}" if start else "from scratch"
  if config.init_from and not start:
    where = f"from the weights in {config.init_from}"
  print(f"{config.training.steps} steps, {where}, into {folder}", flush=True)


def describe_attention(config: RunConfig, mesh: jax.sharding.Mesh) -> str:
  """How tokens attend in this run, on this mesh."""
  tokens, _, samples = config.data.budget
  return attention.describe(config.model, mesh, tokens, samples > 1)


def farewell(folder: epath.Path, config: RunConfig) -> None:
  """Says where everything lies and what to type next."""
  plan = config.training
  prompt = shlex.quote(plan.sample_prompts[0])
  print(f"""
Done. In {folder}:
  {SAMPLES}/step_{plan.steps:06d}.png   samples at the end
  report.html                 loss, samples by step; open it in a browser
  metrics.jsonl, tensorboard/ the numbers
  checkpoints/                weights and optimizer
Next:
  python -m lumina_jax.sample --workdir={folder} --prompt={prompt}""")
  if isinstance(config.data, DigitsConfig):
    print(f"  python -m lumina_jax.evaluate --workdir={folder}")


def main(_) -> None:
  args = flags.FLAGS
  config = configs.parse(args.config)
  folder = workdirs.claim(config, args.workdir, args.allow_config_change)
  try:
    train(config, folder)
  except KeyboardInterrupt:
    saved = workdirs.has_checkpoint(folder)
    where = "goes on at the newest checkpoint" if saved else "starts anew"
    print(f"\nthe same command {where}")
    raise
  farewell(folder, config)


def run() -> None:
  """Defines the flags and runs the command."""
  config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, e.g. configs/digits.py or configs/digits.py:flag",
  )
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_bool(
    "allow_config_change", False, "Go on in a workdir whose config differs."
  )
  flags.mark_flags_as_required(["config", "workdir"])
  entry_point.run(main)


if __name__ == "__main__":
  run()
