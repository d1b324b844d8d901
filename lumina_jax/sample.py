"""Makes pictures of prompts: python -m lumina_jax.sample --prompt="3 1 4"

With --workdir from a run of one's own, without it from the digits that ship
with the package.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from etils import epath
from PIL import Image

from lumina_jax import entry_point
from lumina_jax import workdir as workdirs
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.reporting import picture
from lumina_jax.reporting.progress import Progress

OVERVIEW = "overview.png"


def write_pictures(
  images: Sequence[Image.Image],
  prompts: Sequence[str],
  seed: int,
  folder: epath.Path,
) -> list[epath.Path]:
  """Writes each picture as it is and, beside it, enlarged; then an overview.

  Args:
    images: of the prompts, equally many of each.
    prompts: what they show.
    seed: becomes part of the names.
    folder: exists.

  Returns:
    The files, the overview last.
  """
  each = len(images) // len(prompts)
  captions = [prompt for prompt in prompts for _ in range(each)]
  stems = [picture.file_stem(prompt) for prompt in prompts]
  paths = []
  for i, image in enumerate(images):
    number, copy = divmod(i, each)
    # Prompts that look alike in a file's name still get files of their own.
    again = stems[:number].count(stems[number])
    alike = f"_{again + 1}" if again else ""
    name = f"{stems[number]}{alike}_seed{seed}_{copy}"
    paths += [folder / f"{name}.png", folder / f"{name}_x{picture.ENLARGE}.png"]
    picture.save(image, paths[-2])
    picture.save(picture.enlarge(image), paths[-1])
  sheet = picture.contact_sheet(images, captions)
  paths.append(folder / OVERVIEW)
  picture.save(sheet, paths[-1])
  return paths


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
      negative_prompt=args.negative_prompt,
      height=args.height,
      width=args.width,
      num_inference_steps=args.num_inference_steps,
      guidance_scale=args.guidance_scale,
      num_images_per_prompt=args.num_images_per_prompt,
      seed=args.seed,
      solver=args.solver,
      shift=args.shift,
      progress=lambda done, _: progress.show(done),
    ).images
  paths = write_pictures(images, args.prompt, args.seed, folder)
  print(f"{len(images)} pictures in {folder}; all of them: {paths[-1]}")


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_string("workdir", None, "Run to sample from.")
  flags.DEFINE_multi_string("prompt", [], "What to show; may be repeated.")
  flags.DEFINE_string("negative_prompt", "", "What to steer away from.")
  flags.DEFINE_integer("height", None, "In pixels; default: by the prompt.")
  flags.DEFINE_integer("width", None, "In pixels; default: by the prompt.")
  flags.DEFINE_integer("num_inference_steps", None, "Integration steps.")
  flags.DEFINE_float("guidance_scale", None, "1 = no guidance.")
  flags.DEFINE_integer(
    "num_images_per_prompt", 1, "Pictures of each prompt.", lower_bound=1
  )
  flags.DEFINE_alias("num_samples", "num_images_per_prompt")
  flags.DEFINE_integer("seed", 0, "Fixes the noise.", lower_bound=0)
  flags.DEFINE_string("solver", None, "euler, midpoint, heun or rk4.")
  flags.DEFINE_float("shift", None, "Of the time grid.")
  flags.DEFINE_string("output", "samples", "Folder for the pictures.")
  entry_point.run(main)


if __name__ == "__main__":
  run()
