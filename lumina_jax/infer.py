"""Pictures of prompts: lumina infer PROMPT [OUTPUT_DIR] [--flag=value ...]

  lumina infer "3 1 4"                     the digits that ship with the package
  lumina infer "A snowman" out --ckpt=Lumina-Next-SFT --resolution=1024x1024
  lumina infer --prompt_file=prompts.txt --output=out --ckpt=Lumina-Next-SFT

Flags stand above the settings file, and that above how the pipeline samples by
default. A prompt that begins with a dash goes behind a lone "--".
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import jax
from absl import flags
from etils import epath

from lumina_jax import sample
from lumina_jax.commands import provenance, wishes
from lumina_jax.commands import settings_yaml as settings
from lumina_jax.commands import start as entry_point
from lumina_jax.commands.settings_yaml import Settings
from lumina_jax.files import atomic
from lumina_jax.parallel import processes
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained.original import VAES
from lumina_jax.sampling import presets
from lumina_jax.sampling.program import SamplingConfig

PRECISIONS = {"bf16": "bfloat16", "fp32": "float32"}
OF_CKPT = ("ckpt_lm", "vae", "ema")
SCALING = ("ntk_scaling", "scaling_method", "scaling_watershed")
# What the settings file knows too, by its names.
OWN = (
  "num_inference_steps",
  "solver",
  "shift",
  "proportional_attention",
  "scaling_watershed",
)


def choose(args: Any) -> Settings:
  """The settings file and, above it, flags.

  Raises:
    ValueError: for values that are none, or contradict each other.
    OSError: if the file cannot be read.
  """
  chosen = Settings()
  if args.config:
    chosen, remarks = settings.read(args.config)
    for remark in remarks:
      logging.warning("%s: %s", args.config, remark)
  if None not in (args.num_sampling_steps, args.num_inference_steps):
    raise ValueError(
      f"--num_sampling_steps={args.num_sampling_steps} counts points, "
      f"--num_inference_steps={args.num_inference_steps} steps: give one of "
      "them"
    )
  if args.resolution and (args.height or args.width):
    raise ValueError("--resolution beside --height or --width: give one way")
  points, steps = args.num_sampling_steps, args.num_inference_steps
  if steps is not None:
    if steps < 1:
      raise ValueError(f"--num_inference_steps={steps} must be positive")
    points = steps + 1
  given = {
    "ckpt": args.ckpt,
    "ckpt_lm": args.ckpt_lm,
    "token": args.token,
    "resolution": None
    if args.resolution is None
    else settings.resolution("--resolution", args.resolution),
    "num_sampling_steps": points,
    "solver": args.solver,
    "t_shift": args.shift,
    "proportional_attn": args.proportional_attention,
    **{name: getattr(args, name) for name in SCALING},
  }
  given = {name: value for name, value in given.items() if value is not None}
  return dataclasses.replace(chosen, **given)


def load(args: Any, chosen: Settings) -> tuple[LuminaPipeline, str]:
  """The pipeline that was asked for, and its name.

  Raises:
    ValueError: for flags that do not go together.
    FileNotFoundError: if there is none; says what to do.
  """
  precision = args.precision
  if precision == "fp16":
    raise ValueError(
      "--precision=fp16: float16 overflows in these networks; use bf16"
    )
  if precision not in (None, *PRECISIONS):
    raise ValueError(f"--precision={precision}: use {' or '.join(PRECISIONS)}")
  of_ckpt = {name: getattr(args, name) for name in OF_CKPT}
  named = [name for name, value in of_ckpt.items() if value is not None]
  if args.workdir:
    named += ["ckpt"] * (args.ckpt is not None)
    named += ["precision"] * (precision is not None)
    if named:
      raise ValueError(f"--workdir and --{named[0]}: give one of them")
    print(f"loading the run in {args.workdir}", flush=True)
    return LuminaPipeline.from_workdir(args.workdir), args.workdir
  if not chosen.ckpt and named:
    raise ValueError(f"--{named[0]} needs --ckpt, the network it belongs to")
  options = {
    "dtype": PRECISIONS.get(precision),
    "ema": args.ema,
    "text_encoder": chosen.ckpt_lm if chosen.ckpt else None,
    "vae": VAES.get(args.vae, args.vae),
    "token": chosen.token,
  }
  said = {k: v for k, v in options.items() if v is not None}
  if chosen.ckpt:
    parts = "".join(
      f", {name} from {said[name]}"
      for name in ("text_encoder", "vae")
      if name in said
    )
    print(f"loading {chosen.ckpt}{parts}", flush=True)
  else:
    print(
      "no --ckpt, no --workdir: sampling from the digits that ship with the "
      "package"
    )
  # All prompts are encoded at once, so that neither network waits for the
  # other in memory.
  pipe = LuminaPipeline.from_pretrained(
    chosen.ckpt, one_at_a_time=True, mesh=processes.data_parallel_mesh(), **said
  )
  return pipe, chosen.ckpt or "digits"


def sampling(
  own: SamplingConfig, chosen: Settings, how: presets.How | None = None
) -> SamplingConfig:
  """How to sample: as the pipeline does, but for what was chosen.

  What of the settings does not concern its network gets a warning: a file is
  often that of another one.

  Args:
    own: of the pipeline.
    chosen: the settings.
    how: what they do not know.
  """
  how, beyond = dict(how or {}), own.beyond
  asked = how.get("rope_scaling")
  rule = asked or (beyond.rule if beyond else None)
  known = {"ntk_plain": SCALING[:1], "watershed": SCALING[1:]}.get(rule, ())
  known += ("proportional_attn",) if beyond else ()
  unused = [
    name
    for name in (*SCALING, "proportional_attn")
    if getattr(chosen, name) is not None and name not in known
  ]
  if unused:
    logging.warning(
      "%s: this network has no such rule for sizes beyond those of training; "
      "not used",
      ", ".join(unused),
    )
  off = {
    "ntk_scaling": chosen.ntk_scaling is False,
    "scaling_method": chosen.scaling_method == settings.NO_SCALING,
  }
  if not asked and any(off[name] for name in known if name in off):
    how["rope_scaling"], known = "none", known[-1:]
  how |= {
    "num_inference_steps": chosen.num_inference_steps,
    "solver": chosen.solver,
    "shift": chosen.t_shift,
    "proportional_attention": chosen.proportional_attn if beyond else None,
  }
  if "scaling_watershed" in known:
    how["scaling_watershed"] = chosen.scaling_watershed
  return presets.choose(own, None, {}, how | _tolerances(own, chosen, how))


def _tolerances(
  own: SamplingConfig, chosen: Settings, how: presets.How
) -> presets.How:
  """Those of the settings, below flags, for the solver that reads them."""
  found = {name: getattr(chosen, name) for name in settings.TOLERANCES}
  found = {name: x for name, x in found.items() if x is not None}
  if (chosen.solver or own.solver) == "dopri5":
    return {k: x for k, x in found.items() if how.get(k) is None}
  if any(x != settings.TOLERANCES[name] for name, x in found.items()):
    logging.warning(
      "%s: solvers with fixed steps need no tolerance; not used",
      ", ".join(f"ode.{name}" for name in found),
    )
  return {}


@processes.only_first_prints()
def main(argv: list[str]) -> None:
  processes.exit_on_sigterm()  # Files are whole or not there.
  args = flags.FLAGS
  prompts, output = wishes.positional(argv[1:], args.prompt_file)
  chosen = choose(args)
  size = chosen.resolution
  if args.image and args.resolution is None:
    size = None  # That of a settings file is for pictures from nothing.
  asked = wishes.from_flags(args, prompts, size, chosen.cfg_scale, chosen.seed)
  if None not in (args.output, output):
    raise ValueError(f"{output!r} and --output={args.output}: give one folder")
  folder = epath.Path(output or args.output or sample.OUTPUT).expanduser()
  processes.on_first(lambda: atomic.make_folder(folder))
  if args.num_gpus != 1:
    logging.warning(
      "--num_gpus=%d: JAX chooses the devices (JAX_PLATFORMS, "
      "CUDA_VISIBLE_DEVICES); sampling runs on all of them",
      args.num_gpus,
    )
  device, count = jax.devices()[0], jax.device_count()
  many = f"{count} x " if count > 1 else ""
  print(f"device: {many}{device.device_kind} ({device.platform})", flush=True)
  began = time.monotonic()
  pipe, name = load(args, chosen)
  more = {k: x for k, x in wishes.how(args).items() if k not in OWN}
  pipe.sampling = sampling(pipe.sampling, chosen, more)
  count = sample.parameters(pipe)
  print(f"{count / 1e6:,.1f} M parameters, {pipe.dtype}", flush=True)
  sample.encode(pipe, asked)
  pipe.params  # noqa: B018  Loads them, if encoding was to come first.
  loaded = time.monotonic()
  print(f"loaded in {loaded - began:.1f} s", flush=True)
  model = {
    "model": provenance.public(name),
    "text_encoder": provenance.public(chosen.ckpt_lm),
    "vae": provenance.public(args.vae),
    "ema": args.ema,
  }
  images = sample.draw(pipe, asked, args.num_images_per_prompt, folder, model)
  seconds = (time.monotonic() - loaded) / len(images)
  if len(images) > 1:
    print(f"all of them: {sample.write_overview(images, prompts, folder)}")
  what = "pictures" if len(images) > 1 else "picture"
  print(
    f"{len(images)} {what} in {folder}, {seconds:.2f} s each with compilation"
  )


def run() -> None:
  """Defines the flags and runs the command."""
  text, truth = flags.DEFINE_string, flags.DEFINE_bool
  text("ckpt", None, "Folder or hub name of a pipeline.")
  text("ckpt_lm", None, "Folder or hub name of its text encoder.")
  flags.DEFINE_alias("text_encoder", "ckpt_lm")
  text("vae", None, "Likewise an autoencoder, or ema, mse, sdxl, sd3.")
  flags.DEFINE_alias("ckpt_vae", "vae")
  truth("ema", None, "Averaged weights or raw ones; default: what there is.")
  text("precision", None, "bf16 or fp32; default by --ckpt.")
  text("config", None, "A settings.yaml of the original.", short_name="c")
  text("token", None, "For gated repositories of the hub.")
  text("prompt_file", None, "Prompts, one a line; # begins a remark.")
  flags.DEFINE_integer("num_gpus", 1, "Accepted; JAX chooses the devices.")
  text("resolution", None, "Width and height in pixels, as 1024x512.")
  flags.DEFINE_integer(
    "num_sampling_steps",
    None,
    "Points of time, as the original counts: N points are N - 1 steps.",
  )
  truth("ntk_scaling", None, "Flag-DiT: stretch beyond trained sizes.")
  flags.DEFINE_enum(
    "scaling_method",
    None,
    settings.METHODS,
    "Next-DiT: stretch beyond trained sizes.",
  )
  wishes.define_flags()
  flags.DEFINE_alias("cfg_scale", "guidance_scale")
  flags.DEFINE_alias("t_shift", "shift")
  flags.DEFINE_alias("proportional_attn", "proportional_attention")
  flags.adopt_module_key_flags(wishes)  # So that --help lists them.
  entry_point.run(main)


if __name__ == "__main__":
  run()
