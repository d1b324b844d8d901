"""Makes pictures of prompts: python -m lumina_jax.sample --prompt="3 1 4"

With --workdir from a run of one's own, without it from the digits that ship
with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath
from PIL import Image

from lumina_jax import entry_point
from lumina_jax import workdir as workdirs
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.reporting import picture
from lumina_jax.reporting.progress import Progress

OVERVIEW = "overview.png"
EACH = "once, or once for each prompt"


def write_pictures(
  images: Sequence[Image.Image],
  prompts: Sequence[str],
  seeds: Sequence[int],
  folder: epath.Path,
) -> list[epath.Path]:
  """Writes each picture as it is and, beside it, enlarged; then an overview.

  Args:
    images: of the prompts, equally many of each.
    prompts: what they show.
    seeds: of the prompts; part of the names.
    folder: exists.

  Returns:
    The files, the overview last.
  """
  each = len(images) // len(prompts)
  paths, taken = [], set()
  for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
    # Prompts that look alike in a file's name still get files of their own,
    # also where a disk does not tell capitals.
    plain = f"{picture.file_stem(prompt)}_seed{seed}"
    stem, again = plain, 1
    while stem.casefold() in taken:
      again += 1
      stem = f"{plain}_{again}"
    taken.add(stem.casefold())
    for copy, image in enumerate(images[number * each : (number + 1) * each]):
      name = f"{stem}_{copy}"
      paths.append(folder / f"{name}.png")
      picture.save(image, paths[-1])
      paths.append(folder / f"{name}_x{picture.ENLARGE}.png")
      picture.save(picture.enlarge(image), paths[-1])
  captions = [prompt for prompt in prompts for _ in range(each)]
  paths.append(folder / OVERVIEW)
  picture.save(picture.contact_sheet(images, captions), paths[-1])
  return paths


def one_or_each(values: list[Any] | None) -> Any:
  """A flag given once is for all prompts, given more often one for each."""
  return values[0] if values and len(values) == 1 else values


def main(argv: list[str]) -> None:
  args = flags.FLAGS
  if len(argv) > 1:
    raise ValueError(f'unexpected {argv[1:]}; write --prompt="..."')
  if not args.prompt:
    raise ValueError('no prompt; write --prompt="3 1 4", --prompt="" for none')
  folder = epath.Path(args.output)
  workdirs.make_folder(folder)
  if args.workdir:
    pipe = LuminaPipeline.from_workdir(args.workdir)
  else:
    print("no --workdir: sampling from the digits that ship with the package")
    pipe = LuminaPipeline.from_pretrained()
  total = len(args.prompt) * args.num_images_per_prompt
  with Progress("sampling", total, unit="pictures") as progress:
    images = pipe(
      args.prompt,
      negative_prompt=one_or_each(args.negative_prompt),
      height=one_or_each(args.height),
      width=one_or_each(args.width),
      num_inference_steps=args.num_inference_steps,
      guidance_scale=one_or_each(args.guidance_scale),
      num_images_per_prompt=args.num_images_per_prompt,
      seed=one_or_each(args.seed),
      solver=args.solver,
      shift=args.shift,
      progress=lambda done, _: progress.show(done),
    ).images
  seeds = args.seed * len(args.prompt) if len(args.seed) == 1 else args.seed
  paths = write_pictures(images, args.prompt, seeds, folder)
  print(f"{len(images)} pictures in {folder}; all of them: {paths[-1]}")


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_string("workdir", None, "Run to sample from.")
  flags.DEFINE_multi_string(
    "prompt", [], "What to show, text or number of a class; may be repeated."
  )
  flags.DEFINE_multi_string(
    "negative_prompt", [""], f"What to steer away from; {EACH}."
  )
  flags.DEFINE_multi_integer(
    "height", None, f"In pixels or latents, default by the run; {EACH}."
  )
  flags.DEFINE_multi_integer(
    "width", None, f"In pixels or latents, default by the run; {EACH}."
  )
  flags.DEFINE_multi_float("guidance_scale", None, f"1 = none; {EACH}.")
  flags.DEFINE_multi_integer("seed", [0], f"Fixes the noise; {EACH}.")
  flags.DEFINE_integer("num_inference_steps", None, "Integration steps.")
  flags.DEFINE_integer(
    "num_images_per_prompt", 1, "Pictures of each prompt.", lower_bound=1
  )
  flags.DEFINE_alias("num_samples", "num_images_per_prompt")
  flags.DEFINE_string("solver", None, "euler, midpoint, heun or rk4.")
  flags.DEFINE_float("shift", None, "Of the time grid.")
  flags.DEFINE_string("output", "samples", "Folder for the pictures.")
  entry_point.run(main)


if __name__ == "__main__":
  run()
