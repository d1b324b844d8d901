"""Makes pictures of prompts: python -m lumina_jax.sample --prompt="3 1 4"

With --workdir from a run of one's own, without it from the digits that ship
with the package. All devices of all processes share the pictures out; the first
process prints and writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from PIL import Image

from lumina_jax.commands import provenance, wishes
from lumina_jax.commands import start as entry_point
from lumina_jax.commands.wishes import Wish
from lumina_jax.files import atomic
from lumina_jax.files.progress import Progress
from lumina_jax.media import image as image_file
from lumina_jax.media import sheet as picture
from lumina_jax.parallel import processes
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling import presets, source_image
from lumina_jax.sampling import times as time_grid

OUTPUT = "samples"
OVERVIEW = "overview.png"
# From so many parameters on, a step takes long enough to be waited for.
SLOW = 10**8


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
  sheet = picture.contact_sheet(images, captions, each=each)
  processes.on_first(lambda: picture.save(sheet, folder / OVERVIEW))
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
  first = asked[0]
  strength = source_image.strength(first.strength, first.image)
  steps = time_grid.choose(
    pipe.sampling, first.schedule, first.sigmas, strength
  ).steps
  # How many steps an adaptive solver takes nobody knows before.
  slow = parameters(pipe) >= SLOW and pipe.sampling.solver != "dopri5"
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

      def write():
        for place, image in enumerate(found):
          wish, number = group[place // each], place % each
          path = _free(folder, f"{names[first + place // each]}_{number}")
          said = provenance.texts(pipe, model, wish, number, image.size)
          picture.write(image, path, said)

      processes.on_first(write)
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
  if not asked[0].image:
    return None
  return [image_file.open(w.image, "--image") for w in asked]


def _call(pipe, group, each, watch) -> list[Image.Image]:
  values = [dataclasses.asdict(wish) for wish in group]
  columns = {key: [v[key] for v in values] for key in values[0]}
  if columns["guidance_scale"][0] is None:  # Then of all: see `wishes`.
    columns["guidance_scale"] = None
  first = group[0]
  columns |= dict(
    image=_images(group),
    strength=first.strength,
    schedule=first.schedule,
    sigmas=first.sigmas,
  )
  return pipe(**columns, num_images_per_prompt=each, **watch).images


@processes.only_first_prints()
def main(argv: list[str]) -> None:
  processes.exit_on_sigterm()  # Files are whole or not there.
  args = flags.FLAGS
  if len(argv) > 1:
    raise ValueError(f'unexpected {argv[1:]}; write --prompt="..."')
  if not args.prompt:
    raise ValueError('no prompt; write --prompt="3 1 4", --prompt="" for none')
  asked = wishes.from_flags(args, args.prompt)
  folder = epath.Path(args.output or OUTPUT).expanduser()
  processes.on_first(lambda: atomic.make_folder(folder))
  if args.workdir:
    pipe = LuminaPipeline.from_workdir(args.workdir)
  else:
    print("no --workdir: sampling from the digits that ship with the package")
    pipe = LuminaPipeline.from_pretrained(mesh=processes.data_parallel_mesh())
  pipe.sampling = presets.choose(pipe.sampling, None, {}, wishes.how(args))
  each = args.num_images_per_prompt
  model = {"model": provenance.public(args.workdir) or "digits"}
  images = draw(pipe, asked, each, folder, model)
  overview = write_overview(images, args.prompt, folder)
  print(f"{len(images)} pictures in {folder}; all of them: {overview}")


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_multi_string(
    "prompt", [], "What to show, text or number of a class; may be repeated."
  )
  wishes.define_flags()
  flags.adopt_module_key_flags(wishes)  # So that --help lists them.
  entry_point.run(main)


if __name__ == "__main__":
  run()
