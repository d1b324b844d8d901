"""Sheets of a run: samples of its data, and generated samples."""

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.batches import Batches
from lumina_jax import media
from lumina_jax.media import image
from lumina_jax.media.sheet import contact_sheet
from lumina_jax.model.offload import Offloadable
from lumina_jax.parallel import processes
from lumina_jax.pretrained.encoders import Encoders
from lumina_jax.sampling.generate import generate
from lumina_jax.sampling.output import RAW
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState

SAMPLES = "samples"
DATA = "data.png"
MAX_SHOWN = 24  # Samples of the data.


def preview_data(
  config: RunConfig, batches: Batches, encoders: Encoders, folder: epath.Path
) -> None:
  """Writes a sheet of the first training samples, as the network sees them.

  Samples are cropped and have the selected captions; the codec decodes latents.

  Args:
    config: config of the run.
    batches: batches of the run.
    encoders: frozen networks of the run.
    folder: workdir of the run.
  """
  path = folder / SAMPLES / DATA
  if not processes.is_first() or path.exists():
    return
  samples = list(itertools.islice(batches.samples(0), MAX_SHOWN))
  if not samples:
    return  # All of them are bad.
  arrays = [sample.grid.detokenize(sample.patches) for sample in samples]
  if encoders.codec:
    with processes.use_mesh_of(encoders.codec.params):
      arrays = [np.asarray(encoders.codec.decode(x)) for x in arrays]
  _write(config, arrays, [sample.caption for sample in samples], path)
  print(f"training data: {path}", flush=True)


def preview_samples(
  config: RunConfig,
  state: TrainState,
  encoders: Encoders,
  folder: epath.Path,
  poll: Callable[..., None],
) -> None:
  """Writes a sheet of samples of the configured prompts, from the EMA weights.

  All processes sample, process 0 writes.

  Args:
    config: config of the run.
    state: state with the EMA weights.
    encoders: frozen networks of the run.
    folder: workdir of the run.
    poll: called between batches of samples; its exceptions propagate.
  """
  plan, step, text = config.training, int(state.step), encoders.text
  components = config.components(Offloadable.pinned(state.ema), encoders)
  was_loaded = text is not None and text.loaded  # Training encodes captions.
  each = plan.samples_per_prompt
  try:
    output = generate(
      components,
      plan.sample_prompts,
      **{components.medium.per_prompt: each},
      output_type=RAW,
      progress=poll,
    )
  except FloatingPointError as error:
    # The loss decides whether the run continues.
    print(f"no samples at step {step}: {error}", flush=True)
    return
  finally:
    if text is not None and not was_loaded:
      text.free()  # It caches the prompts; training needs the memory.
  if processes.is_first():
    captions = [prompt for prompt in plan.sample_prompts for _ in range(each)]
    path = folder / SAMPLES / f"step_{step:06d}.png"
    _write(config, output.samples, captions, path, each)


def _write(
  config: RunConfig,
  samples: Sequence[Any],
  captions: Sequence[str],
  path: epath.Path,
  each: int = 1,
) -> None:
  preview = media.find(config.medium).preview
  sheet = contact_sheet([preview(x) for x in samples], captions, each=each)
  try:
    path.parent.mkdir(exist_ok=True)
    image.save(sheet, path)
  except OSError as error:  # A full disk must not end the run.
    logging.warning("%s was not written: %s", path, error)
