"""From noise to pictures, batch by batch: in one go, or step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lumina_jax import inputs, output, sampler
from lumina_jax import pictures as picture_batches
from lumina_jax.flow import ode
from lumina_jax.network import Network, Params
from lumina_jax.parallel.mesh import divisors
from lumina_jax.pictures import Batch, Picture
from lumina_jax.sampler import SamplingConfig

if TYPE_CHECKING:
  from lumina_jax.pipeline import LuminaPipeline

# (step, time after it, latents by picture) -> latents to go on with, or None.
OnStep = Callable[[int, float, dict[int, np.ndarray]], Any]


def images(
  pipe: LuminaPipeline,
  pictures: Sequence[Picture],
  sampling: SamplingConfig,
  times: jax.Array,
  on_step: OnStep | None,
  progress: Callable[[int, int], None] | None,
  decode: bool,
) -> list[np.ndarray]:
  """Draws pictures with the parts of a pipeline.

  Args:
    pipe: the pipeline.
    pictures: to draw.
    sampling: as in `draw`.
    times: as in `draw`.
    on_step: as in `draw`.
    progress: told after each batch how many are done, and how many there are.
    decode: whether its autoencoder makes pixels of latents.

  Returns:
    Pixels or latents `f32[H, W, C]` of each picture, in order.

  Raises:
    FloatingPointError: naming a picture that is none.
  """
  found: dict[int, np.ndarray] = {}
  with pipe.devices():
    for drawn in draw(
      pipe.params, pipe.network, pictures, sampling, times, on_step
    ):
      for number, image in drawn.items():
        of = pictures[number]
        what = f"picture {number} ({of.prompt!r}, seed {of.seed})"
        output.check_finite(image, what, pipe.dtype)
        if decode:
          image = pipe.vae.decode(image, tile=pipe.vae_tile or None)
          image = np.asarray(image)
          output.check_finite(image, f"{what}, decoded", pipe.vae.cfg.dtype)
        found[number] = image
      if progress:
        progress(len(found), len(pictures))
  return [found[number] for number in range(len(pictures))]


def draw(
  params: Params,
  network: Network,
  pictures: Sequence[Picture],
  sampling: SamplingConfig,
  times: jax.Array,
  on_step: OnStep | None = None,
) -> Iterator[dict[int, np.ndarray]]:
  """Solves for every picture.

  Args:
    params: of the network.
    network: predicts the velocity.
    pictures: to draw.
    sampling: solver, rows and the rest.
    times: grid of the solver.
    on_step: sees each step; the host then waits for each, and a program of one
      step runs in place of one of all of them.

  Yields:
    For each batch, latents `f32[H, W, C]` by the number of their picture.
  """
  solver = ode.solver(sampling.solver)
  for batch in picture_batches.batches(
    pictures, network, sampling, times, divisors()
  ):
    if on_step is None:
      patches = sampler.sample(
        params, batch.request, network=network, solver=solver
      )
    else:
      patches = _stepwise(params, network, batch, solver, on_step)
    yield batch.cut(np.asarray(patches))


def _stepwise(
  params: Params,
  network: Network,
  batch: Batch,
  solver: ode.Tableau,
  on_step: OnStep,
) -> jax.Array:
  request, times = batch.request, np.asarray(batch.request.times)
  x = request.start
  if x is None:
    x = np.asarray(sampler.noise(request, network=network))
  for step in range(len(times) - 1):
    one = request._replace(start=x, times=times[step : step + 2])
    x = sampler.sample(params, one, network=network, solver=solver)
    # From the host each time: what comes from a device would compile anew.
    x = np.asarray(x)
    changed = on_step(step, float(times[step + 1]), batch.cut(x))
    if changed is not None:
      x = batch.paste(changed)
  return x


def callback_on_step_end(
  pipeline: Any, callback: Callable[..., Any], names: Sequence[str]
) -> OnStep:
  """A callback of diffusers' kind as one of ours.

  Args:
    pipeline: that it is shown.
    callback: takes (pipeline, step, time, {"latents": [...]}) and may return
      such a dict with other latents.
    names: what it asks for.

  Raises:
    ValueError: if that is more than latents.
  """
  names = [names] if isinstance(names, str) else names
  if unknown := set(names) - {"latents"}:
    raise ValueError(
      f"callback_on_step_end_tensor_inputs {sorted(unknown)}: there are "
      "'latents' only"
    )

  def on_step(step, time, latents):
    shown = {"latents": list(latents.values())} if names else {}
    answer = callback(pipeline, step, time, shown)
    if not answer or answer.get("latents") is None:
      return None
    shapes = [old.shape for old in latents.values()]
    try:
      values = inputs.latents(answer["latents"], shapes)
    except ValueError as error:
      raise ValueError(f"callback_on_step_end returned {error}") from error
    return dict(zip(latents, values, strict=True))

  return on_step
