"""Flags of `infer`, and what they ask for prompt by prompt."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from absl import flags

from lumina_jax.commands import flags as option_flags
from lumina_jax.commands import settings_yaml
from lumina_jax.commands.settings import METHODS, Settings
from lumina_jax.media import image
from lumina_jax.sampling import arguments
from lumina_jax.sampling.options import SamplingOptions

OUTPUT = "samples"

flags.disclaim_key_flags()  # --help of the command lists them as its own.


def define() -> None:
  """Defines all flags."""
  text, truth = flags.DEFINE_string, flags.DEFINE_bool
  each = option_flags.EACH
  flags.DEFINE_multi_string("prompt", [], "A prompt; may be repeated.")
  text("prompt_file", None, "Prompts, one a line; # starts a comment.")
  text("output", None, f"Folder for the samples; default {OUTPUT}.")
  flags.DEFINE_multi_string(
    "negative_prompt", None, f"What guidance steers away from. {each}"
  )
  flags.DEFINE_multi_integer(
    "seed", None, f"Fixes the noise; default 0. {each}"
  )
  flags.DEFINE_integer(
    "num_images_per_prompt", 1, "Samples of each prompt.", lower_bound=1
  )
  flags.DEFINE_alias("num_samples", "num_images_per_prompt")
  flags.DEFINE_multi_string(
    "image", None, f"Initial image in place of noise. {each}"
  )
  text("workdir", None, "Run to sample from.")
  text("ckpt", None, "Folder or hub name of a pipeline.")
  text("ckpt_lm", None, "Folder or hub name of its text encoder.")
  flags.DEFINE_alias("text_encoder", "ckpt_lm")
  text("vae", None, "Folder or hub name of its vae, or ema, mse, sdxl, sd3.")
  flags.DEFINE_alias("ckpt_vae", "vae")
  truth("ema", None, "EMA weights or raw ones; default: EMA if there are both.")
  text("precision", None, "bf16 or fp32; default: that of --ckpt.")
  text("token", None, "For gated repositories of the hub.")
  text("config", None, "A settings.yaml of the original.", short_name="c")
  text("resolution", None, "Width and height in pixels, as 1024x512.")
  flags.DEFINE_integer(
    "num_sampling_steps",
    None,
    "Points of time, as the original counts: N points are N - 1 steps.",
  )
  truth("ntk_scaling", None, "Flag-DiT: stretch beyond trained sizes.")
  flags.DEFINE_enum(
    "scaling_method", None, METHODS, "Next-DiT: stretch beyond trained sizes."
  )
  flags.DEFINE_integer("num_gpus", 1, "Ignored; JAX chooses the devices.")
  option_flags.define_options()
  option_flags.define_sizes()
  flags.DEFINE_alias("cfg_scale", "guidance_scale")
  flags.DEFINE_alias("t_shift", "shift")


def read_settings(args: Any) -> Settings:
  """The settings file, overridden by flags of the original's names.

  Raises:
    ValueError: for invalid values, or flags that contradict each other.
    OSError: if the file cannot be read.
  """
  settings = Settings()
  if args.config is not None:
    settings, remarks = settings_yaml.read(args.config)
    for remark in remarks:
      logging.warning("%s: %s", args.config, remark)
  points, steps = args.num_sampling_steps, args.num_inference_steps
  if None not in (points, steps):
    raise ValueError(
      f"--num_sampling_steps={points} counts points of time, "
      f"--num_inference_steps={steps} steps: pass one of them"
    )
  if args.resolution and (args.height or args.width):
    raise ValueError("--resolution beside --height or --width: pass one way")
  given = {
    name: getattr(args, name)
    for name in (
      *("ckpt", "ckpt_lm", "token", "solver", "num_sampling_steps"),
      *("ntk_scaling", "scaling_method", "scaling_watershed"),
    )
  }
  if args.resolution is not None:
    given["resolution"] = settings_yaml.resolution(
      args.resolution, "--resolution"
    )
  given = {name: value for name, value in given.items() if value is not None}
  return dataclasses.replace(settings, **given)


def per_prompt(
  args: Any, prompts: list[str], settings: Settings
) -> list[dict[str, Any]]:
  """Arguments of each prompt, from flags given once or once for each.

  Raises:
    ValueError: for lists of other lengths, seeds out of range, or an image that
      cannot be read.
  """
  count = len(prompts)
  sizes = option_flags.size_values()
  # The size of a settings file does not apply to an initial image.
  from_file = args.resolution is None
  if settings.resolution and not sizes and not (args.image and from_file):
    sizes = dict(zip(("width", "height"), settings.resolution, strict=True))
  for path in args.image or ():
    image.open(path, "--image")
  seeds = _once_or_each(args.seed, settings.seed or 0)
  seeds = arguments.per_prompt(seeds, count, "--seed")
  columns = {
    "prompt": prompts,
    "negative_prompt": _once_or_each(args.negative_prompt, ""),
    "seed": [seed for seed, _ in arguments.seeds(seeds, None, count)],
    "image": _once_or_each(args.image, None),
    **{
      field.name: _once_or_each(
        getattr(args, field.name),
        settings.cfg_scale if field.name == "guidance_scale" else None,
      )
      for field in dataclasses.fields(SamplingOptions)
      if field.metadata["per_sample"]
    },
    **{name: _once_or_each(value, None) for name, value in sizes.items()},
  }
  return arguments.rows(columns, count, "--")


def _once_or_each(value: Any, default: Any) -> Any:
  if not isinstance(value, list):
    return default if value is None else value
  return value[0] if len(value) == 1 else value


def check_options(values: Mapping[str, Any]) -> None:
  """Refuses invalid options before anything is loaded.

  Raises:
    ValueError: naming the option.
  """
  plain = {k: v for k, v in values.items() if not isinstance(v, list | dict)}
  dataclasses.replace(SamplingOptions("euler", 1, 1.0, 1.0), **plain)
