"""Flags of `lumina_jax.encode`, and what is wrong with their values."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from data_pipelines import shards
from data_pipelines.shard_job import BadLimit
from lumina_jax.encoders.frozen import CLEANING, HIDDEN, FrozenTextConfig

PATCH = 2  # Latents along the side of a token, of nearly every network.
PIXELS = 16  # of a token where pixels are stored: an autoencoder's 8, twice.

LEAST = {
  "seed": 0,
  "unit": 0,
  "choices": 1,
  "epochs": 1,
  "records_per_shard": 1,
  "batch_size": 1,
  "threads": 1,
}


def define() -> None:
  """Defines all of them."""
  _define_pictures()
  _define_encoders()
  _define_work()


def check(args: Any) -> None:
  """Looks at the values before anything is read or made.

  Args:
    args: all flags.

  Raises:
    ValueError: if one is missing or cannot be, naming it.
    OSError: if shards cannot go where they should.
  """
  if not args.output:
    raise ValueError("name the folder of shards, --output=FOLDER")
  output = shards.local(args.output)
  if args.verify:
    return
  if not args.source or not args.sides:
    raise ValueError(
      "name the pictures and the sides of their crops in pixels: "
      "--source=FOLDER --sides=256"
    )
  for side in args.sides:
    if not side.strip().isdecimal():
      raise ValueError(f"--sides={','.join(args.sides)}: {side!r} is no number")
  for name, least in LEAST.items():
    if getattr(args, name) < least:
      raise ValueError(f"--{name}={getattr(args, name)}: at least {least}")
  BadLimit(args.max_bad)
  check_process(args.process_id, args.num_processes)
  _check_output(args, output)


def check_process(process: int, processes: int) -> None:
  """Compares the number of a process with how many there are.

  Raises:
    ValueError: if there is no such process.
  """
  if not 0 <= process < processes:
    raise ValueError(
      f"--process_id={process} --num_processes={processes}: processes count "
      "from 0, so that the last one is one less than how many there are"
    )


def _check_output(args: Any, output: pathlib.Path) -> None:
  if output.exists() and not output.is_dir():
    raise NotADirectoryError(
      f"--output={args.output} is a file; name a folder for the shards"
    )
  source = pathlib.Path(args.source).expanduser().resolve()
  if not source.is_dir():
    return
  # Shards and their settings make a folder one of shards when training.
  if output.resolve().is_relative_to(source):
    raise ValueError(
      f"--output={args.output} lies in --source={args.source}; keep shards "
      "apart from the pictures"
    )


def _define_pictures() -> None:
  flags.DEFINE_string(
    "source",
    None,
    "Pictures with captions: a folder, a .yaml file or tfds:NAME; see "
    "data_pipelines.annotations.",
  )
  flags.DEFINE_list(
    "sides",
    [],
    "Sides in pixels, such as 256 or 256,512: crops are of all shapes with "
    "about as many pixels as these squares.",
  )
  flags.DEFINE_integer(
    "unit",
    0,
    "Pixels of a token, which sides are multiples of: the network's patch "
    f"times what the autoencoder shrinks by. 0 = {PATCH} times the latter, "
    f"{PIXELS} without one.",
  )
  flags.DEFINE_float("longest", 4.0, "The most that one side is of the other.")
  flags.DEFINE_integer(
    "choices", 4, "A crop has one of so many shapes that fit a picture best."
  )
  flags.DEFINE_bool("flip", False, "Swap left and right of every other crop.")
  flags.DEFINE_integer("channels", 3, "Of pixels: 3, or 1 for grey.")
  flags.DEFINE_integer("epochs", 1, "Crops of each picture.")
  flags.DEFINE_integer("seed", 0, "Of the crops.")


def _define_encoders() -> None:
  text = FrozenTextConfig(width=1)
  kinds = ("float32", "bfloat16")
  flags.DEFINE_string(
    "vae", None, "Folder or hub name of an autoencoder; without it, pixels."
  )
  flags.DEFINE_enum(
    "vae_dtype", "float32", kinds, "What the autoencoder computes in."
  )
  flags.DEFINE_string(
    "text_encoder",
    None,
    "Folder or hub name of a language model; without it, captions stay text.",
  )
  flags.DEFINE_string(
    "tokenizer", None, "Folder of the language model's tokenizer, if elsewhere."
  )
  flags.DEFINE_enum(
    "dtype", "bfloat16", kinds, "What the language model computes in."
  )
  flags.DEFINE_enum(
    "hidden", text.hidden, HIDDEN, "State of the language model to take."
  )
  flags.DEFINE_integer(
    "max_tokens", text.max_tokens, "Of a caption, at the most."
  )
  flags.DEFINE_bool("add_eos", text.add_eos, "End captions with a token.")
  flags.DEFINE_enum(
    "cleaning", text.cleaning, CLEANING, "What is done to captions first."
  )
  flags.DEFINE_string(
    "system_prompt", text.system_prompt, "Stands before each caption."
  )


def _define_work() -> None:
  flags.DEFINE_string("output", None, "Folder of the shards.")
  flags.DEFINE_integer("records_per_shard", 1000, "Pictures of a file.")
  flags.DEFINE_integer("batch_size", 8, "Pictures that are encoded at once.")
  flags.DEFINE_integer("threads", 4, "Threads that load pictures.")
  flags.DEFINE_integer("process_id", 0, "Number of this process, from 0.")
  flags.DEFINE_integer("num_processes", 1, "Processes that share the work.")
  flags.DEFINE_float("max_bad", 0.05, "Share of pictures that may be left out.")
  flags.DEFINE_bool("verify", False, "Compare the checksums of --output.")
