"""What is asked on a command line: one wish for each prompt, and how to draw.

The flags that `sample` and `infer` share, and what they say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from lumina_jax.backbone.rope import RULES
from lumina_jax.flow.sde import FORMS, LAST
from lumina_jax.flow.solvers import SOLVERS
from lumina_jax.media import image as image_file
from lumina_jax.sampling import arguments as inputs
from lumina_jax.sampling import presets, source_image

USAGE = 'usage: lumina infer "A snowman" [OUTPUT_DIR] [--flag=value ...]'
EACH = "once, or once for each prompt"
# Flags that are arguments of calls, by kind.
TEXTS = {
  "solver": f"One of {', '.join(SOLVERS)}.",
  "rope_scaling": f"Beyond trained sizes: {', '.join(RULES)}.",
  "diffusion": f"Of the sde solvers: {', '.join(FORMS)}.",
  "last_step": f"Of the sde solvers: {', '.join(LAST)}.",
}
LISTS = {
  "schedule": "Of the times: uniform, sigmoid, diffusers, or times as 0,0.5,1.",
  "sigmas": "Noise levels in its place, as 1,0.7,0.3.",
  "guidance_interval": "Times between which guidance acts, as 0,0.5.",
}
NUMBERS = {
  "shift": "Of the time grid, towards noise.",
  "guidance_renorm": "Longest steered velocity; 0 = any length.",
  "rtol": "Relative error of dopri5.",
  "atol": "Absolute error of dopri5.",
  "scaling_watershed": "Time at which the rule watershed changes.",
}
COUNTS = {
  "num_inference_steps": "Integration steps.",
  "shift_tokens": "Tokens for which the shift is meant; 0 = all sizes.",
  "guidance_channels": "Guided are the first so many; 0 = all.",
}


@dataclasses.dataclass(frozen=True)
class Wish:
  """What is asked of one prompt; None = by the pipeline's rule.

  Of one call all have the same strength, schedule and sigmas.
  """

  prompt: str
  negative_prompt: str
  seed: int
  height: int | None
  width: int | None
  guidance_scale: float | None
  image: str | None = None
  strength: float | None = None
  schedule: list[str] | None = None
  sigmas: list[str] | None = None


def positional(
  words: Sequence[str], prompt_file: str | None
) -> tuple[list[str], str | None]:
  """Prompts, those of a file behind the one given, and the output folder.

  Raises:
    ValueError: if there is no prompt or a word too much.
    OSError: if the file cannot be read.
  """
  if truth := [word for word in words if word in ("True", "False")]:
    raise ValueError(f"unexpected {truth[0]!r}: write --flag={truth[0]}")
  if len(words) > 2:
    raise ValueError(f"unexpected {words[2:]}; quote the prompt. {USAGE}")
  if not words and prompt_file is None:
    raise ValueError(f"no prompt. {USAGE}")
  prompts = list(words[:1])
  output = words[1] if len(words) == 2 else None
  if prompt_file is None:
    return prompts, output
  if len(words) == 1 and len(words[0].split()) == 1:
    raise ValueError(
      f"--prompt_file and {words[0]!r}: write --output={words[0]} for a "
      "folder; for one more prompt name the folder too, PROMPT OUTPUT_DIR"
    )
  try:
    text = epath.Path(prompt_file).read_text()
  except OSError as error:
    raise OSError(
      f"--prompt_file={prompt_file} cannot be read: {error.strerror}"
    ) from error
  lines = [line.strip() for line in text.splitlines()]
  found = [line for line in lines if line and not line.startswith("#")]
  if not found:
    raise ValueError(
      f"--prompt_file={prompt_file} holds no prompt; write one on each line"
    )
  return prompts + found, output


def from_flags(
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

  source_image.strength(args.strength, args.image)
  for path in args.image or ():
    image_file.open(path, "--image")
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
    [_times(args)] * len(prompts),
    [args.sigmas] * len(prompts),
  )
  return [Wish(*row) for row in zip(*columns, strict=True)]


def one_or_each(values: list[Any] | None) -> Any:
  """A flag given once is for all prompts, given more often one for each."""
  return values[0] if values and len(values) == 1 else values


def how(args: Any) -> presets.How:
  """What the flags say of solver, times, guidance and positions."""
  names = (*TEXTS, *LISTS, *NUMBERS, *COUNTS, "proportional_attention")
  found = {name: getattr(args, name) for name in names}
  if args.schedule and not _times(args):
    (found["schedule"],) = args.schedule
  return found


def _times(args: Any) -> list[str] | None:
  """Times in place of the name of a schedule."""
  several = args.schedule is not None and len(args.schedule) > 1
  return args.schedule if several else None


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
  for define, named in (
    (flags.DEFINE_string, TEXTS),
    (flags.DEFINE_list, LISTS),
    (flags.DEFINE_float, NUMBERS),
    (flags.DEFINE_integer, COUNTS),
  ):
    for name, told in named.items():
      define(name, None, told)
  flags.DEFINE_bool(
    "proportional_attention", None, "Scale attention by the picture's size."
  )
  flags.DEFINE_string("output", None, "Folder for the pictures: samples.")
