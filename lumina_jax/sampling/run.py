"""From noise to pictures, batch by batch: in one go, or step by step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lumina_jax.flow.adaptive import DormandPrince
from lumina_jax.flow.ode import Solver, State
from lumina_jax.flow.solvers import on_path
from lumina_jax.model.network import Network, Params
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import divisors
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling import batch as picture_batches
from lumina_jax.sampling import output
from lumina_jax.sampling import program as sampler
from lumina_jax.sampling.batch import Batch, Picture
from lumina_jax.sampling.program import SamplingConfig
from lumina_jax.sampling.times import TimeGrid

if TYPE_CHECKING:
  from lumina_jax.pipeline import LuminaPipeline

# (step, times after it and latents, by picture) -> latents to go on with, or
# None.
OnStep = Callable[[int, dict[int, float], dict[int, np.ndarray]], Any]


class Drawn(NamedTuple):
  """A picture, and what it took.

  Attributes:
    image: `f32[H, W, C]`.
    evaluations: of the velocity, by the batch that it was drawn in.
    behind: whether the solver gave up before the end.
  """

  image: np.ndarray
  evaluations: int
  behind: bool = False


def images(
  pipe: LuminaPipeline,
  pictures: Sequence[Picture],
  sampling: SamplingConfig,
  times: TimeGrid,
  on_step: OnStep | None,
  progress: Callable[[int, int], None] | None,
  decode: bool,
) -> list[Drawn]:
  """Draws pictures with the parts of a pipeline.

  Of several processes, all draw with the same arguments, each on its devices of
  the mesh, and all are given all pictures.

  Args:
    pipe: the pipeline.
    pictures: to draw.
    sampling: as in `draw`.
    times: as in `draw`.
    on_step: as in `draw`.
    progress: told after each batch how many are done, and how many there are.
    decode: whether its autoencoder makes pixels of latents.

  Returns:
    Each picture in order, of pixels or latents.

  Raises:
    FloatingPointError: naming a picture that is none.
  """
  found: dict[int, Drawn] = {}
  with pipe.devices():
    pictures = _encoded(pipe, pictures)
    for drawn in draw(
      pipe.params, pipe.network, pictures, sampling, times, on_step
    ):
      for number, (image, evaluations, behind) in drawn.items():
        of = pictures[number]
        what = f"picture {number} ({of.prompt!r}, seed {of.seed})"
        output.check_finite(image, what, pipe.dtype)
        if behind:
          raise FloatingPointError(
            f"{what}: {sampling.solver} did not arrive within {evaluations} "
            "evaluations; allow larger errors by rtol and atol, or take a "
            "solver of fixed steps"
          )
        if decode:
          with processes.use_mesh_of(pipe.vae.params):
            image = pipe.vae.decode(image, tile=pipe.vae_tile or None)
          image = processes.gather(image)
          output.check_finite(image, f"{what}, decoded", pipe.vae.cfg.dtype)
        found[number] = Drawn(image, evaluations)
      if progress:
        progress(len(found), len(pictures))
  return [found[number] for number in range(len(pictures))]


def _encoded(
  pipe: LuminaPipeline, pictures: Sequence[Picture]
) -> Sequence[Picture]:
  """Pictures with latents of what they begin with, each encoded once."""
  if pipe.vae is None or pictures[0].image is None:
    return pictures
  images = {id(p.image): p.image for p in pictures}
  tile = pipe.vae_tile or None
  with processes.use_mesh_of(pipe.vae.params):
    latents = {
      key: processes.gather(pipe.vae.encode(image, tile=tile))
      for key, image in images.items()
    }
  return [dataclasses.replace(p, image=latents[id(p.image)]) for p in pictures]


def draw(
  params: Params,
  network: Network,
  pictures: Sequence[Picture],
  sampling: SamplingConfig,
  times: TimeGrid,
  on_step: OnStep | None = None,
) -> Iterator[dict[int, Drawn]]:
  """Solves for every picture.

  Args:
    params: of the network.
    network: predicts the velocity.
    pictures: to draw.
    sampling: solver, rows and the rest.
    times: grids of the solver.
    on_step: sees each step; the host then waits for each, and a program of one
      step runs in place of one of all of them.

  Yields:
    For each batch, latents and what was done for them, by the number of their
    picture.
  """
  solver = on_path(sampling.method, network.objective.of)
  for batch in picture_batches.batches(
    pictures, network, sampling, times, divisors()
  ):
    if on_step is None:
      state = sampler.sample(
        params, batch.request, network=network, solver=solver
      )
    else:
      state = _stepwise(params, network, batch, solver, on_step)
    state = processes.gather(state)
    evaluations, behind = int(state.evaluations), batch.each(state.behind)
    yield {
      number: Drawn(image, evaluations, bool(behind[number]))
      for number, image in batch.cut(state.x).items()
    }


def _stepwise(
  params: Params,
  network: Network,
  batch: Batch,
  solver: Solver,
  on_step: OnStep,
) -> State:
  request, times = batch.request, batch.request.times
  parts = list(itertools.pairwise(times))
  if isinstance(solver, DormandPrince):  # It has steps of its own.
    solver = dataclasses.replace(solver, tries=1)
    parts = itertools.repeat((times[0], times[-1]))
  how = dict(network=network, solver=solver)
  state = sampler.begin(request, **how)
  for step, part in enumerate(parts):
    # From the host each time: what comes from a device would compile anew.
    state = processes.gather(state)
    one = request._replace(times=np.stack(part))
    state = processes.gather(sampler.advance(params, one, state, **how))
    latents = batch.cut(state.x)
    changed = on_step(step, batch.each(state.time), latents)
    if changed is not None:
      state = state._replace(x=batch.paste(changed))
    if np.any(state.behind) or np.all(state.time == times[-1]):
      break
  return state


def watcher(
  pipeline: Any,
  callback: Callable[..., Any] | None,
  of_diffusers: Callable[..., Any] | None,
  names: Sequence[str],
) -> OnStep | None:
  """One of two kinds of callbacks as ours.

  Args:
    pipeline: that the second kind is shown.
    callback: takes (step, time of the first picture, list of latents) and may
      return such a list.
    of_diffusers: takes (pipeline, step, time, {"latents": [...]}) and may
      return such a dict.
    names: what the second kind asks for.

  Raises:
    ValueError: if there are both, or that is more than latents.
  """
  names = [names] if isinstance(names, str) else names
  if unknown := set(names) - {"latents"}:
    raise ValueError(
      f"callback_on_step_end_tensor_inputs {sorted(unknown)}: there are "
      "'latents' only"
    )
  if callback is not None and of_diffusers is not None:
    raise ValueError("callback and callback_on_step_end: give one of them")
  if callback is None and of_diffusers is None:
    return None

  def call(step, time, latents):
    if callback is not None:
      return callback(step, time, latents)
    shown = {"latents": latents} if names else {}
    return (of_diffusers(pipeline, step, time, shown) or {}).get("latents")

  def on_step(step, times, latents):
    answer = call(step, next(iter(times.values())), list(latents.values()))
    if answer is None:
      return None
    shapes = [old.shape for old in latents.values()]
    try:
      values = inputs.latents(answer, shapes)
    except ValueError as error:
      raise ValueError(f"the callback returned {error}") from error
    return dict(zip(latents, values, strict=True))

  return on_step
