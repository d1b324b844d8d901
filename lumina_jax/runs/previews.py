"""Pictures of a run: what it is shown, and what it draws."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import numpy as np
from etils import epath

from data_pipelines.batches import Batches
from lumina_jax.media import sheet as picture
from lumina_jax.parallel import processes
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs.run_encoders import RunEncoders
from lumina_jax.sampling import output
from lumina_jax.training.run_config import RunConfig
from lumina_jax.training.state import TrainState

SAMPLES = "samples"
DATA = "data.png"
SHOWN = 24  # Samples of the data.


def draw_data(
  batches: Batches,
  encoders: RunEncoders,
  folder: epath.Path,
) -> None:
  """Writes a picture of the first samples as the network gets them.

  Cropped, with the captions that were chosen; latents go back through the
  autoencoder.
  """
  path = folder / SAMPLES / DATA
  if not processes.is_first() or path.exists():
    return
  samples = list(itertools.islice(batches.samples(0), SHOWN))
  samples = [s for s in samples if len(s.grid.shape) in (2, 3)]
  if not samples:
    return  # No pictures, or none that can be read.
  images = [sample.grid.detokenize(sample.patches) for sample in samples]
  if encoders.vae:
    with processes.use_mesh_of(encoders.vae.params):
      images = [np.asarray(encoders.vae.decode(image)) for image in images]
  captions = [sample.caption for sample in samples]
  _write([output.to_pil(image) for image in images], captions, path)
  print(f"what it is trained on: {path}", flush=True)


def draw_samples(
  config: RunConfig,
  state: TrainState,
  encoders: RunEncoders,
  folder: epath.Path,
  poll: Callable[..., None],
) -> None:
  """Writes a picture of the configured prompts, from the averaged weights.

  All processes draw, the first one writes.

  Args:
    config: of the run.
    state: of which the average is taken.
    encoders: frozen networks of the run.
    folder: its workdir.
    poll: called between batches of pictures; what it raises goes through.
  """
  plan, step = config.training, int(state.step)
  pipe = LuminaPipeline(
    config.network,
    state.ema,
    config.sampling,
    vae=encoders.vae,
    text_encoder=encoders.text,
  )
  text = encoders.text
  needed = text is not None and text.loaded  # By data encoded on the way.
  try:
    images = pipe(
      plan.sample_prompts,
      num_images_per_prompt=plan.samples_per_prompt,
      progress=poll,
    ).images
  except FloatingPointError as error:
    # Whether to go on is for the loss to say.
    print(f"no picture at step {step}: {error}", flush=True)
    return
  finally:
    if text is not None and not needed:
      text.free()  # It remembers the prompts; the step wants the memory.
  captions = [
    p for p in plan.sample_prompts for _ in range(plan.samples_per_prompt)
  ]
  if processes.is_first():
    path = folder / SAMPLES / f"step_{step:06d}.png"
    _write(images, captions, path, plan.samples_per_prompt)


def _write(
  images: list, captions: list[str], path: epath.Path, each: int = 1
) -> None:
  sheet = picture.contact_sheet(images, captions, each=each)
  try:
    path.parent.mkdir(exist_ok=True)
    picture.save(sheet, path)
  except OSError as error:  # A full disk ends no run for a picture's sake.
    logging.warning("%s was not written: %s", path, error)
