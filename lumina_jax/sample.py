"""Makes pictures of prompts: python -m lumina_jax.sample --prompt="3 1 4"

With --workdir from a run of one's own, without it from the digits that ship
with the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from lumina_jax import entry_point, inputs, presets, provenance, time_grid
from lumina_jax import workdir as workdirs
from lumina_jax.backbone.rope import RULES
from lumina_jax.flow.solvers import SOLVERS
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.reporting import picture
from lumina_jax.reporting.progress import Progress

OUTPUT = "samples"
OVERVIEW = "overview.png"
# From so many parameters on, a step takes long enough to be waited for.
SLOW = 10**8
EACH = "once, or once for each prompt"


@dataclasses.dataclass(frozen=True)
class Wish:
  """What is asked of one prompt; None = by the pipeline's rule."""

  prompt: str
  negative_prompt: str
  seed: int
  height: int | None
  width: int | None
  guidance_scale: float | None
  image: str | None = None
  strength: float | None = None


def wishes(
  args: Any,
  prompts: Sequence[str],
  size: tuple[int, int] | None = None,
  guidance_scale: float | None = None,
  seed: int | None = None,
) -> list[Wish]:
  """One wish for each prompt, from flags given once or once for each.

  Args:
    args: the flags.
    prompts: what to show.
    size: (width, height) where flags say nothing.
    guidance_scale: likewise.
    seed: likewise.

  Raises:
    ValueError: for lists of unlike lengths and seeds out of range, a file that
      is no picture, or a strength without one.
    OSError: if it cannot be read.
  """
  width, height = size or (None, None)

  def each(name, otherwise):
    values = one_or_each(getattr(args, name))
    values = otherwise if values is None else values
    return inputs.one_each(values, len(prompts), f"--{name}")

  inputs.strength(args.strength, args.image)
  for path in args.image or ():
    open_image(path)
  numbers = each("seed", seed or 0)
  columns = (
    prompts,
    each("negative_prompt", ""),
    [first for first, _ in inputs.seeds(numbers, None, len(prompts))],
    each("height", height),
    each("width", width),
    each("guidance_scale", guidance_scale),
    each("image", None),
    [args.strength] * len(prompts),
  )
  return [Wish(*row) for row in zip(*columns, strict=True)]


def open_image(path: str | None) -> Image.Image | None:
  """A picture to begin with, the right way up; None of None.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is no picture.
  """
  if path is None:
    return None
  try:
    with epath.Path(path).expanduser().open("rb") as file:
      return ImageOps.exif_transpose(Image.open(file).copy())
  except UnidentifiedImageError as error:
    raise ValueError(
      f"--image={path} is no picture that can be read"
    ) from error
  except OSError as error:
    raise OSError(
      f"--image={path} cannot be read: {error.strerror or error}"
    ) from error


def write_overview(
  images: Sequence[Image.Image], prompts: Sequence[str], folder: epath.Path
) -> epath.Path:
  """Writes all pictures side by side.

  Args:
    images: of the prompts, equally many of each.
    prompts: what they show.
    folder: exists.

  Returns:
    The file.
  """
  each = len(images) // len(prompts)
  captions = [prompt for prompt in prompts for _ in range(each)]
  picture.save(picture.contact_sheet(images, captions), folder / OVERVIEW)
  return folder / OVERVIEW


def parameters(pipe: LuminaPipeline) -> int:
  """How many the network has, loaded or not."""
  return sum(x.size for x in jax.tree.leaves(pipe.network.shapes()))


def encode(pipe: LuminaPipeline, asked: Sequence[Wish]) -> None:
  """Encodes all captions and gives the language model's memory up.

  Sizes are checked first, since encoding may take long.
  """
  if pipe.text_encoder is None:
    return
  sides = [w.height for w in asked], [w.width for w in asked]
  images = _images(asked)
  pipe.check_sizes([w.prompt for w in asked], *sides, images)
  captions = {w.prompt for w in asked} | {w.negative_prompt for w in asked}
  print(f"encoding {len(captions)} captions", flush=True)
  pipe.text_encoder.remember(len(captions))
  with pipe.devices():
    pipe.text_encoder.encode(sorted(captions))
  pipe.text_encoder.free()


def draw(
  pipe: LuminaPipeline,
  asked: Sequence[Wish],
  each: int,
  folder: epath.Path,
  model: Mapping[str, Any],
) -> list[Image.Image]:
  """Draws each wish, and writes its pictures.

  A slow network draws one prompt after another, so that what is done is on the
  disk if the rest is interrupted, and shows every step.

  Args:
    pipe: that draws.
    asked: what.
    each: pictures of a wish.
    folder: exists.
    model: name and parts of the network, to be written into the files.

  Returns:
    All pictures.

  Raises:
    FloatingPointError: for one that is no picture, when all others are written.
  """
  names = picture.stems([w.prompt for w in asked], [w.seed for w in asked])
  strength = inputs.strength(asked[0].strength, asked[0].image)
  steps = time_grid.choose(pipe.sampling, strength=strength).steps
  slow = parameters(pipe) >= SLOW
  factor, unit = (steps, "steps") if slow else (1, "pictures")
  total, done, images = len(asked) * each, 0, []
  with Progress("sampling", total * factor, unit=unit) as bar:

    def on_step(pipe, step, time, shown):
      nonlocal done
      done += len(shown["latents"])
      bar.show(done, f"picture {done // steps}/{total}")

    watch = dict(progress=lambda number, _: bar.show(number))
    if slow:
      watch = dict(callback_on_step_end=on_step)

    def finish(first, group):
      found = _call(pipe, group, each, watch)
      for place, image in enumerate(found):
        wish, number = group[place // each], place % each
        path = _free(folder, f"{names[first + place // each]}_{number}")
        said = provenance.texts(pipe, model, wish, number, image.size)
        picture.write(image, path, said)
      images.extend(found)

    if not slow:
      try:
        finish(0, asked)
        return images
      except FloatingPointError:
        pass  # One of them is no picture; the others are still wanted.
    errors = []
    for number, wish in enumerate(asked):
      try:
        finish(number, [wish])
      except FloatingPointError as error:
        errors.append(error)
  if errors:
    raise errors[0]
  return images


def _free(folder: epath.Path, stem: str) -> epath.Path:
  """A name that no picture has: what was drawn before stays."""
  path, again = folder / f"{stem}.png", 1
  while path.exists():
    again += 1
    path = folder / f"{stem}_{again}.png"
  return path


def _images(asked: Sequence[Wish]) -> list[Image.Image] | None:
  """Pictures to begin with: of all wishes, or of none."""
  return [open_image(w.image) for w in asked] if asked[0].image else None


def _call(pipe, group, each, watch) -> list[Image.Image]:
  values = [dataclasses.asdict(wish) for wish in group]
  columns = {key: [v[key] for v in values] for key in values[0]}
  if columns["guidance_scale"][0] is None:  # Then of all: see `wishes`.
    columns["guidance_scale"] = None
  columns |= dict(image=_images(group), strength=group[0].strength)
  return pipe(**columns, num_images_per_prompt=each, **watch).images


def one_or_each(values: list[Any] | None) -> Any:
  """A flag given once is for all prompts, given more often one for each."""
  return values[0] if values and len(values) == 1 else values


def main(argv: list[str]) -> None:
  args = flags.FLAGS
  if len(argv) > 1:
    raise ValueError(f'unexpected {argv[1:]}; write --prompt="..."')
  if not args.prompt:
    raise ValueError('no prompt; write --prompt="3 1 4", --prompt="" for none')
  asked = wishes(args, args.prompt)
  folder = epath.Path(args.output or OUTPUT).expanduser()
  workdirs.make_folder(folder)
  if args.workdir:
    pipe = LuminaPipeline.from_workdir(args.workdir)
  else:
    print("no --workdir: sampling from the digits that ship with the package")
    pipe = LuminaPipeline.from_pretrained()
  pipe.sampling = presets.choose(pipe.sampling, None, {}, how(args))
  each = args.num_images_per_prompt
  model = {"model": provenance.public(args.workdir) or "digits"}
  images = draw(pipe, asked, each, folder, model)
  overview = write_overview(images, args.prompt, folder)
  print(f"{len(images)} pictures in {folder}; all of them: {overview}")


HOW = (
  "num_inference_steps",
  "solver",
  "schedule",
  "shift",
  "guidance_interval",
  "guidance_renorm",
  "rope_scaling",
  "proportional_attention",
)


def how(args: Any) -> presets.How:
  """What the flags say of solver, times, guidance and positions."""
  return {name: getattr(args, name) for name in HOW}


def define_flags() -> None:
  """Defines what `lumina infer` has as well."""
  flags.DEFINE_string("workdir", None, "Run to sample from.")
  flags.DEFINE_multi_string(
    "negative_prompt", None, f"What to steer away from; {EACH}."
  )
  flags.DEFINE_multi_integer(
    "height", None, f"In pixels or latents, default by the network; {EACH}."
  )
  flags.DEFINE_multi_integer(
    "width", None, f"In pixels or latents, default by the network; {EACH}."
  )
  flags.DEFINE_multi_float("guidance_scale", None, f"1 = none; {EACH}.")
  flags.DEFINE_multi_integer(
    "seed", None, f"Fixes the noise, 0 (the default) too; {EACH}."
  )
  flags.DEFINE_integer("num_inference_steps", None, "Integration steps.")
  flags.DEFINE_integer(
    "num_images_per_prompt", 1, "Pictures of each prompt.", lower_bound=1
  )
  flags.DEFINE_alias("num_samples", "num_images_per_prompt")
  flags.DEFINE_multi_string(
    "image", None, f"Picture to begin with in place of noise; {EACH}."
  )
  flags.DEFINE_float(
    "strength", None, "How much of it is drawn anew: above 0, at most 1."
  )
  text, number = flags.DEFINE_string, flags.DEFINE_float
  text("solver", None, f"One of {', '.join(SOLVERS)}.")
  text("schedule", None, "Of the times: uniform, sigmoid or diffusers.")
  number("shift", None, "Of the time grid, towards noise.")
  flags.DEFINE_list(
    "guidance_interval", None, "Times between which guidance acts, as 0,0.5."
  )
  number("guidance_renorm", None, "Longest steered velocity; 0 = any length.")
  text("rope_scaling", None, f"Beyond trained sizes: {', '.join(RULES)}.")
  flags.DEFINE_bool(
    "proportional_attention", None, "Scale attention by the picture's size."
  )
  flags.DEFINE_string("output", None, "Folder for the pictures: samples.")


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_multi_string(
    "prompt", [], "What to show, text or number of a class; may be repeated."
  )
  define_flags()
  entry_point.run(main)


if __name__ == "__main__":
  run()
