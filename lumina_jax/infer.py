"""Samples of prompts: lumina infer PROMPT [OUTPUT_DIR] [--flag=value ...]

  lumina infer "3 1 4"                     the digits that ship with the package
  lumina infer --workdir=runs/digits --prompt="3 1 4" --prompt=7
  lumina infer "A snowman" out --ckpt=Lumina-Next-SFT --resolution=1024x1024
  lumina infer --prompt_file=prompts.txt --output=out --ckpt=Lumina-Next-SFT

Flags override the settings file, and that overrides the pipeline's defaults. A
prompt that starts with a dash goes behind a lone "--". All devices of all
processes share the samples; the first process prints and writes.
"""

import logging
import time
from typing import Any

import jax
from absl import flags
from etils import epath

from lumina_jax.commands import flags as option_flags
from lumina_jax.commands import infer_flags, sample_files, start
from lumina_jax.commands.prompts import prompts_and_output
from lumina_jax.commands.sample_files import Job
from lumina_jax.commands.settings import Settings
from lumina_jax.files import atomic
from lumina_jax.parallel import processes
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained.original import VAES
from lumina_jax.sampling import provenance
from lumina_jax.sampling.components import Components

PRECISIONS = {"bf16": "bfloat16", "fp32": "float32"}
OF_CKPT = ("ckpt_lm", "vae", "ema")  # Flags that need --ckpt.


@processes.only_first_prints()
def main(argv: list[str]) -> None:
  processes.exit_on_sigterm()  # Every file is whole or missing.
  args = flags.FLAGS
  prompts, output = prompts_and_output(
    argv[1:], args.prompt, args.prompt_file, args.output
  )
  settings = infer_flags.read_settings(args)
  items = infer_flags.per_prompt(args, prompts, settings)
  folder = epath.Path(output or infer_flags.OUTPUT).expanduser()
  processes.on_first(lambda: atomic.make_folder(folder))
  infer_flags.check_options(option_flags.option_values())
  print_device(args.num_gpus)
  began = time.monotonic()
  pipe, name = load(args, settings)
  check_sizes(pipe.components, items)
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
  if args.workdir == "":
    raise ValueError("--workdir is empty: name the folder of a run")
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
    print(f"loading {settings.ckpt}", flush=True)
  else:
    print("no --ckpt and no --workdir: the digits that ship with the package")
  # All prompts are encoded at once: no network waits in memory for the other.
  pipe = LuminaPipeline.from_pretrained(
    settings.ckpt,
    one_at_a_time=True,
    mesh=processes.data_parallel_mesh(),
    **options,
  )
  return pipe, settings.ckpt or "digits"


def check_sizes(components: Components, items: list[dict[str, Any]]) -> None:
  """Refuses sizes of another medium, by flags or a settings file.

  Raises:
    ValueError: naming the flags of this one.
  """
  axes = [axis.argument for axis in components.medium.axes]
  sizes = [name for name in items[0] if name in option_flags.axes()]
  if wrong := [name for name in sizes if name not in axes]:
    raise ValueError(
      f"{', '.join(wrong)}: this network generates {components.medium.plural}; "
      f"use {', '.join(f'--{axis}' for axis in axes)}"
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
  kind, platform = device.device_kind, device.platform
  kind = kind if kind == platform else f"{kind} ({platform})"
  print(f"device: {many}{kind}", flush=True)


def run() -> None:
  """Defines the flags and runs the command."""
  infer_flags.define()
  flags.adopt_module_key_flags(option_flags)  # So that --help lists them.
  flags.adopt_module_key_flags(infer_flags)
  start.run(main)


if __name__ == "__main__":
  run()
