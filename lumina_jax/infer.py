"""Samples of prompts: lumina infer PROMPT [OUTPUT_DIR] [--flag=value ...]

  lumina infer "3 1 4"                     the digits that ship with the package
  lumina infer --workdir=runs/digits --prompt="3 1 4" --prompt=7
  lumina infer "A snowman" out --ckpt=Lumina-Next-SFT --resolution=1024x1024
  lumina infer --prompt_file=prompts.txt --output=out --ckpt=Lumina-Next-SFT

Flags override the settings file, and that overrides the pipeline's defaults. A
prompt that starts with a dash goes behind a lone "--". All devices of all
processes share the samples; the first process prints and writes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags
from etils import epath

from lumina_jax.commands import flags as option_flags
from lumina_jax.commands import sample_files, settings_yaml, start
from lumina_jax.commands.prompts import prompts_and_output
from lumina_jax.commands.sample_files import Job
from lumina_jax.commands.settings import METHODS, Settings
from lumina_jax.files import atomic
from lumina_jax.media import image
from lumina_jax.parallel import processes
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained.original import VAES
from lumina_jax.sampling import arguments, provenance
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions

OUTPUT = "samples"
PRECISIONS = {"bf16": "bfloat16", "fp32": "float32"}
OF_CKPT = ("ckpt_lm", "vae", "ema")  # Flags that need --ckpt.


@processes.one_voice()
def main(argv: list[str]) -> None:
  processes.end_on_sigterm()  # Every file is whole or missing.
  args = flags.FLAGS
  prompts, output = prompts_and_output(
    argv[1:], args.prompt, args.prompt_file, args.output
  )
  settings = read_settings(args)
  items = per_prompt(args, prompts, settings)
  folder = epath.Path(output or OUTPUT).expanduser()
  processes.on_first(lambda: atomic.make_folder(folder))
  check_options(option_flags.option_values())
  print_device(args.num_gpus)
  began = time.monotonic()
  pipe, name = load(args, settings)
  check_sizes(pipe.components)
  common, remarks = settings.option_values(
    pipe.options, pipe.components.sizes, option_flags.option_values()
  )
  for remark in remarks:
    logging.warning(remark)
  model = {
    "model": provenance.public_name(name),
    "text_encoder": provenance.public_name(settings.ckpt_lm),
    "vae": provenance.public_name(args.vae),
    "ema": args.ema,
  }
  each = args.num_images_per_prompt
  job = Job(pipe, items, common, each, folder, model)
  count = sample_files.parameter_count(pipe.network)
  print(f"{count / 1e6:,.1f} M parameters, {pipe.dtype}", flush=True)
  sample_files.encode_captions(job)
  pipe.params  # noqa: B018  Loads them if encoding came first.
  loaded = time.monotonic()
  print(f"loaded in {loaded - began:.1f} s", flush=True)
  samples = sample_files.write_samples(job)
  seconds = (time.monotonic() - loaded) / len(samples)
  if len(samples) > 1:
    print(f"overview: {sample_files.write_overview(job, samples)}")
  plural = "samples" if len(samples) > 1 else "sample"
  print(
    f"{len(samples)} {plural} in {folder}, {seconds:.2f} s each with "
    "compilation"
  )


def read_settings(args: Any) -> Settings:
  """The settings file, overridden by flags of the original's names.

  Raises:
    ValueError: for invalid values, or flags that contradict each other.
    OSError: if the file cannot be read.
  """
  settings = Settings()
  if args.config:
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
      *("ckpt", "ckpt_lm", "token", "num_sampling_steps"),
      *("ntk_scaling", "scaling_method", "scaling_watershed"),
    )
  }
  if args.resolution is not None:
    given["resolution"] = settings_yaml.resolution(
      "--resolution", args.resolution
    )
  given = {name: value for name, value in given.items() if value is not None}
  return dataclasses.replace(settings, **given)


def per_prompt(
  args: Any, prompts: list[str], settings: Settings
) -> list[dict[str, Any]]:
  """Arguments of each prompt, from flags given once or once for each.

  Raises:
    ValueError: for lists of other lengths, seeds out of range, or an image that
      cannot be opened.
    OSError: if an image cannot be read.
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
    "guidance_scale": _once_or_each(args.guidance_scale, settings.cfg_scale),
    "image": _once_or_each(args.image, None),
    **{name: _once_or_each(value, None) for name, value in sizes.items()},
  }
  columns = {
    name: arguments.per_prompt(value, count, f"--{name}")
    for name, value in columns.items()
  }
  return [
    dict(zip(columns, row, strict=True))
    for row in zip(*columns.values(), strict=True)
  ]


def _once_or_each(value: Any, default: Any) -> Any:
  if not isinstance(value, list):
    return default if value is None else value
  return value[0] if len(value) == 1 else value


def load(args: Any, settings: Settings) -> tuple[LuminaPipeline, str]:
  """The pipeline of the flags, and its name.

  Raises:
    ValueError: for flags that contradict each other.
    FileNotFoundError: if there is no such pipeline; says what to do.
  """
  precision = args.precision
  if precision == "fp16":
    raise ValueError(
      "--precision=fp16: float16 overflows in these networks; use bf16"
    )
  if precision not in (None, *PRECISIONS):
    raise ValueError(f"--precision={precision}: use {' or '.join(PRECISIONS)}")
  given = [name for name in OF_CKPT if getattr(args, name) is not None]
  if args.workdir:
    given += [n for n in ("ckpt", "precision") if getattr(args, n) is not None]
    if given:
      raise ValueError(f"--workdir and --{given[0]}: pass one of them")
    print(f"loading the run in {args.workdir}", flush=True)
    return LuminaPipeline.from_workdir(args.workdir), args.workdir
  if not settings.ckpt and given:
    raise ValueError(f"--{given[0]} needs --ckpt, the network it belongs to")
  options = {
    "dtype": PRECISIONS.get(precision),
    "ema": args.ema,
    "text_encoder": settings.ckpt_lm if settings.ckpt else None,
    "vae": VAES.get(args.vae, args.vae),
    "token": settings.token,
  }
  options = {k: v for k, v in options.items() if v is not None}
  if settings.ckpt:
    others = "".join(
      f", {name} from {options[name]}"
      for name in ("text_encoder", "vae")
      if name in options
    )
    print(f"loading {settings.ckpt}{others}", flush=True)
  else:
    print("no --ckpt and no --workdir: the digits that ship with the package")
  # All prompts are encoded at once: no network waits in memory for the other.
  pipe = LuminaPipeline.from_pretrained(
    settings.ckpt, one_at_a_time=True, mesh=processes.everywhere(), **options
  )
  return pipe, settings.ckpt or "digits"


def check_options(values: Mapping[str, Any]) -> None:
  """Refuses invalid options before anything is loaded.

  Raises:
    ValueError: naming the option.
  """
  plain = {k: v for k, v in values.items() if not isinstance(v, list)}
  required = SamplingOptions("euler", 1, 1.0, 1.0)
  dataclasses.replace(required, **plain)


def check_sizes(components: Components) -> None:
  """Refuses size flags of another medium.

  Raises:
    ValueError: naming the flags of this one.
  """
  axes = [axis.argument for axis in components.medium.axes]
  for name in option_flags.size_values():
    if name not in axes:
      raise ValueError(
        f"--{name}: this network generates {components.medium.plural}; their "
        f"size is set by {', '.join(f'--{axis}' for axis in axes)}"
      )


def print_device(num_gpus: int) -> None:
  """Prints the devices, and warns if the original's flag asks for others."""
  if num_gpus != 1:
    logging.warning(
      "--num_gpus=%d has no effect: JAX chooses the devices (JAX_PLATFORMS, "
      "CUDA_VISIBLE_DEVICES); sampling runs on all of them",
      num_gpus,
    )
  device, count = jax.devices()[0], jax.device_count()
  many = f"{count} x " if count > 1 else ""
  print(f"device: {many}{device.device_kind} ({device.platform})", flush=True)


def define_flags() -> None:
  """Defines the flags of the command."""
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


def run() -> None:
  """Defines the flags and runs the command."""
  define_flags()
  option_flags.define_options()
  option_flags.define_sizes()
  flags.DEFINE_alias("cfg_scale", "guidance_scale")
  flags.DEFINE_alias("t_shift", "shift")
  flags.adopt_module_key_flags(option_flags)  # So that --help lists them.
  start.run(main)


if __name__ == "__main__":
  run()
