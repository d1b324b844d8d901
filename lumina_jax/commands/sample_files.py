"""Generates samples of many prompts and writes each to a file of its own."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from lumina_jax.files.progress import Progress
from lumina_jax.media import image
from lumina_jax.media.sheet import contact_sheet
from lumina_jax.model.network import Network
from lumina_jax.parallel import processes
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling import provenance
from lumina_jax.sampling.options import ADAPTIVE, SamplingOptions
from lumina_jax.sampling.output import RAW
from lumina_jax.sampling.overrides import override
from lumina_jax.sampling.times import time_grid

OVERVIEW = "overview.png"
# From so many parameters on, users wait for single steps.
SLOW = 10**8

# Arguments of a prompt that the metadata of its files name.
REQUEST = ("prompt", "negative_prompt", "seed", "image")

# Keyword arguments that belong to one prompt, such as its seed.
Item = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
  """Samples to write.

  Attributes:
    pipe: generates them.
    items: prompts with their own arguments; `image` is a path.
    common: sampling options of all prompts.
    each: samples of each prompt.
    folder: exists.
    model: name and components of the network, for the files.
  """

  pipe: LuminaPipeline
  items: Sequence[Item]
  common: Mapping[str, Any]
  each: int
  folder: epath.Path
  model: Mapping[str, Any]

  @property
  def options(self) -> SamplingOptions:
    return override(self.pipe.options, self.common)

  @functools.cached_property
  def stems(self) -> list[str]:
    """Names of the files of each prompt, without number and suffix."""
    prompts = [item["prompt"] for item in self.items]
    return stems(prompts, [item["seed"] for item in self.items])


def parameter_count(network: Network) -> int:
  """Parameters of a network, loaded or not."""
  return sum(x.size for x in jax.tree.leaves(network.shapes()))


def encode_captions(job: Job) -> None:
  """Encodes all captions at once, so that the language model may leave.

  Checks sizes first, since encoding may take long.
  """
  encoder = job.pipe.text_encoder
  if encoder is None:
    return
  job.pipe.check(**_columns(job.items))
  captions = {item["prompt"] for item in job.items}
  captions |= {item["negative_prompt"] for item in job.items}
  print(f"encoding {len(captions)} captions", flush=True)
  encoder.reserve(len(captions))
  with job.pipe.components.devices():
    encoder.encode(sorted(captions))


def write_samples(job: Job) -> list[np.ndarray]:
  """Generates and writes all samples of a job, with a progress bar.

  A large network generates prompt by prompt and shows every step. So does a
  small one if a sample of the batch is not finite: the others are still
  written.

  Returns:
    The decoded samples.

  Raises:
    FloatingPointError: for a sample that is not finite, after all others are
      written.
  """
  # Nobody knows how many steps an adaptive solver takes.
  adaptive = job.options.solver in ADAPTIVE
  if parameter_count(job.pipe.network) < SLOW or adaptive:
    total = len(job.items) * job.each
    with Progress("sampling", total, unit="samples") as bar:
      watch = {"progress": lambda done, _: bar.show(done)}
      try:
        return _write(job, range(len(job.items)), watch)
      except FloatingPointError:
        return _write_one_by_one(job, lambda _: watch)
  image_given = bool(job.items[0].get("image"))
  strength = job.options.strength if image_given else 1.0
  steps = time_grid(job.options, strength).steps
  with Progress("sampling", len(job.items) * job.each * steps) as bar:
    return _write_one_by_one(job, lambda n: _watch_steps(job, bar, steps, n))


def _watch_steps(
  job: Job, bar: Progress, steps: int, number: int
) -> dict[str, Callable[..., Any]]:
  """Shows every step of a prompt."""
  total, done = len(job.items) * job.each, number * job.each * steps

  def on_step(pipe, step, time, tensors):
    nonlocal done
    done += len(tensors["latents"])
    bar.show(done, f"sample {min(done // steps + 1, total)}/{total}")

  return {"callback_on_step_end": on_step}


def _write(
  job: Job, numbers: Sequence[int], watch: Mapping[str, Any]
) -> list[np.ndarray]:
  """Generates and writes the samples of some prompts in one call."""
  items = [job.items[number] for number in numbers]
  samples = job.pipe(
    **_columns(items),
    **{job.pipe.components.medium.per_prompt: job.each, "output_type": RAW},
    **{k: v for k, v in job.common.items() if k not in items[0]},
    **watch,
  ).samples
  processes.on_first(lambda: _write_files(job, numbers, samples))
  return samples


def _write_one_by_one(
  job: Job, watch: Callable[[int], Mapping[str, Any]]
) -> list[np.ndarray]:
  """Writes prompt by prompt; raises the first error at the end."""
  samples, errors = [], []
  for number in range(len(job.items)):
    try:
      samples += _write(job, [number], watch(number))
    except FloatingPointError as error:
      errors.append(error)
  if errors:
    raise errors[0]
  return samples


def _write_files(
  job: Job, numbers: Sequence[int], samples: Sequence[np.ndarray]
) -> None:
  """Writes samples under names that do not exist yet."""
  medium = job.pipe.components.medium
  places = [(n, k) for n in numbers for k in range(job.each)]
  for (number, k), sample in zip(places, samples, strict=True):
    path = _free(job.folder, f"{job.stems[number]}_{k}", medium.suffix)
    item = job.items[number]
    texts = provenance.metadata(
      job.pipe.components,
      _options_of(job, item),
      job.model,
      {key: item.get(key) for key in REQUEST},
      k,
      medium.sizes(sample.shape, job.pipe.components.sizes.rate),
    )
    medium.write(sample, path, texts)


def _options_of(job: Job, item: Item) -> SamplingOptions:
  names = {field.name for field in dataclasses.fields(job.options)}
  own = {k: v for k, v in item.items() if k in names and v is not None}
  return dataclasses.replace(job.options, **own)


def _columns(items: Sequence[Item]) -> dict[str, list[Any]]:
  """Arguments of a call: a list for each key, images opened."""
  columns = {key: [item[key] for item in items] for key in items[0]}
  columns = {k: v for k, v in columns.items() if any(x is not None for x in v)}
  if "image" in columns:
    columns["image"] = [image.open(x, "--image") for x in columns["image"]]
  return columns


def write_overview(job: Job, samples: Sequence[np.ndarray]) -> epath.Path:
  """Writes a sheet of all samples, and returns its file."""
  captions = [item["prompt"] for item in job.items for _ in range(job.each)]
  previews = map(job.pipe.components.medium.preview, samples)
  sheet = contact_sheet(list(previews), captions, each=job.each)
  processes.on_first(lambda: image.save(sheet, job.folder / OVERVIEW))
  return job.folder / OVERVIEW


def _free(folder: epath.Path, stem: str, suffix: str) -> epath.Path:
  """A name that no file or preview has: earlier samples stay."""
  suffixes = (suffix, ".png", f"_x{image.ENLARGE}.png")
  return next(
    folder / f"{name}{suffix}"
    for name in _candidates(stem)
    if not any((folder / f"{name}{end}").exists() for end in suffixes)
  )


def stems(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
  """Names of files without suffix, one for each prompt.

  They differ even if prompts look alike in a file name, or only in capitals.
  """
  found, taken = [], set()
  for prompt, seed in zip(prompts, seeds, strict=True):
    candidates = _candidates(f"{file_stem(prompt)}_seed{seed}")
    stem = next(name for name in candidates if name.casefold() not in taken)
    taken.add(stem.casefold())
    found.append(stem)
  return found


def _candidates(stem: str) -> Iterator[str]:
  yield stem
  for number in itertools.count(2):
    yield f"{stem}_{number}"


def file_stem(prompt: str) -> str:
  """A prompt as part of a file name."""
  stem = re.sub(r"\W+", "_", prompt.replace("/", " over ")).strip("_")
  # File systems allow 255 bytes, with seed, number and suffix.
  stem = stem[:60].encode()[:180].decode(errors="ignore")
  return stem or "unconditional"
