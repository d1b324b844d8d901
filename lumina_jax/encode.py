"""Encodes pictures and captions once, into shards to train from.

  python -m lumina_jax.encode --source=photos --output=shards --sides=256 \\
    --vae=stabilityai/sdxl-vae --text_encoder=google/gemma-2b

writes latents and text features; without --vae pixels, without --text_encoder
captions as text. Interrupted, the same command goes on where it was. Several
processes share the work if each is told its number, on one machine or many
that see the same folders. They need not run at the same time, and each uses the
first device that it sees:

  CUDA_VISIBLE_DEVICES=3 python -m lumina_jax.encode ... \\
    --process_id=3 --num_processes=8

Whoever ends last writes manifest.json. --verify --output=shards compares every
checksum.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags

from data_pipelines import annotations, shards
from data_pipelines.records import Group
from data_pipelines.scan import scan
from data_pipelines.shard_job import BadLimit, Job
from data_pipelines.shard_settings import Crops, make_job
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.shards import Bad
from lumina_jax.commands import encode_flags
from lumina_jax.commands import start as entry_point
from lumina_jax.commands.encode_flags import PATCH, PIXELS
from lumina_jax.files.progress import Progress

if TYPE_CHECKING:
  from lumina_jax.pretrained.data_encoders import PictureEncoder, TextFeatures

SHOWN = 5  # bad records that are named at the end


def encode(
  job: Job,
  writer: ShardWriter,
  max_bad: float,
  faults: Sequence[str] = (),
  process: int = 0,
  processes: int = 1,
) -> list[str]:
  """Writes the shards process, process + processes, ... that are not there.

  Args:
    job: what goes into them.
    writer: where they go.
    max_bad: share of records that may be left out.
    faults: of the source, what was no record to begin with; they count too.
    process: number of this process.
    processes: that share the work.

  Returns:
    Files of other processes that are not there yet; [] = all is complete.

  Raises:
    OSError: if the disk is full, or too many records are bad.
    ValueError: if there is no such process, or shards of other settings lie
      there.
  """
  encode_flags.check_process(process, processes)
  # Of all pictures: they are no shard's, and each process knows all of them.
  none = [Bad("of the source", fault) for fault in faults]
  BadLimit(max_bad).add(job.total + len(none), none)
  limit = BadLimit(max_bad)
  mine = range(process, job.shards, processes)
  with writer.alone():
    found = [shard for number in mine if (shard := writer.find(number))]
    bad = [bad for shard in found for bad in shard.bad]
    limit.add(sum(shard.records for shard in found) + len(bad), bad)
    there = {shard.file for shard in found}
    todo = [number for number in mine if writer.file(number) not in there]
    if job.features is not None and not writer.has_empty:
      writer.write_empty(job.features([""])[0])
    _write(job, writer, limit, todo, len(found))
    return writer.finish(faults)


def _write(
  job: Job, writer: ShardWriter, limit: BadLimit, todo: list[int], there: int
) -> None:
  total = sum(len(job.draws(number)) for number in todo)
  if there:
    print(f"{there} shards are there already", flush=True)
  done = 0
  with Progress("encoding", total, unit="pictures") as bar:

    def counted(records):
      nonlocal done
      for record in limit.watch(records):
        yield record
        done += 1
        bar.show(done, f"{limit.bad} bad" if limit.bad else "")

    for number in todo:
      writer.write(number, counted(job.records(number)))


def verify(folder: str | os.PathLike) -> None:
  """Compares all checksums of a folder.

  Raises:
    FileNotFoundError: if it is no complete folder of shards.
    ValueError: if files are missing or have changed, naming them.
  """
  folder = pathlib.Path(folder).expanduser()
  manifest = shards.read_manifest(folder)
  found = shards.faults(folder, manifest, verify=True)
  if found:
    raise ValueError(f"{folder}: {'; '.join(found)}")
  print(
    f"{len(manifest['shards'])} shards of {manifest['records']:,} records in "
    f"{folder} are as they were written"
  )


def main(argv: list[str]) -> None:
  args = flags.FLAGS
  if len(argv) > 1:
    raise ValueError(f"{argv[1]!r}: name the pictures with --source={argv[1]}")
  encode_flags.check(args)
  if args.verify:
    return verify(args.output)
  pictures, captions = _encoders(args)
  groups = _scan(args.source)
  job, settings = make_job(
    groups,
    _crops(args, pictures),
    pictures,
    captions,
    args.epochs,
    args.records_per_shard,
    args.batch_size,
    args.threads,
    _root(args.source),
  )
  writer = ShardWriter(args.output, settings, job.shards, args.process_id)
  faults = [fault for group in groups for fault in group.faults]
  missing = encode(
    job, writer, args.max_bad, faults, args.process_id, args.num_processes
  )
  _report(writer.path, missing)


def _encoders(args: Any) -> tuple[PictureEncoder | None, TextFeatures | None]:
  from lumina_jax.pretrained import data_encoders as encoded

  pictures = captions = None
  if args.vae is not None:
    pictures = encoded.load_pictures(args.vae, args.batch_size, args.vae_dtype)
  if args.text_encoder is not None:
    captions = encoded.load_captions(
      args.text_encoder,
      args.tokenizer,
      args.dtype,
      hidden=args.hidden,
      max_tokens=args.max_tokens,
      add_eos=args.add_eos,
      cleaning=args.cleaning,
      system_prompt=args.system_prompt,
    )
  return pictures, captions


def _crops(args: Any, pictures: PictureEncoder | None) -> Crops:
  unit = args.unit or (pictures.factor * PATCH if pictures else PIXELS)
  if pictures and unit % pictures.factor:
    raise ValueError(
      f"--unit={unit} must be a multiple of {pictures.factor}, the pixels of a "
      "latent"
    )
  return Crops(
    tuple(map(int, args.sides)),
    unit,
    args.longest,
    args.choices,
    args.flip,
    args.channels,
    args.seed,
  )


def _scan(source: str) -> list[Group]:
  with contextlib.ExitStack() as stack:
    bar = None

    def show(done, total):
      nonlocal bar
      if bar is None:  # Nobody knew how many there are.
        bar = Progress("looking at", total, unit="pictures", note="")
        stack.enter_context(bar)
      bar.show(done)

    return scan(source, show)


def _root(source: str) -> str:
  """What the paths of a source's pictures begin with."""
  if source.startswith("tfds:"):
    return source.partition("#")[0]
  path = annotations.located(source)
  return f"{path if path.is_dir() else path.parent}/"


def _report(folder: pathlib.Path, missing: list[str]) -> None:
  """Says what there is now, and what to do next."""
  if missing:
    print(
      f"done; {len(missing)} shards of other processes are not there yet, such "
      f"as {missing[0]}. Whoever ends last writes {shards.MANIFEST}"
    )
    return
  manifest = shards.read_manifest(folder)
  bad = [f"{bad['name']}: {bad['reason']}" for bad in manifest["bad"]]
  bad += manifest["faults"]
  for text in list(dict.fromkeys(bad))[:SHOWN]:
    print(f"left out: {text}")
  if bad:
    print(f"{len(bad)} in all were left out; {shards.MANIFEST} lists them")
  print(
    f"{manifest['records']:,} records, {manifest['bytes'] / 1e6:,.1f} MB, in "
    f"{len(manifest['shards'])} shards in {folder}\n"
    "train on them: python -m lumina_jax.train --config=... --workdir=... "
    f"--config.data.sources=\"('{folder.absolute()}',)\""
  )


def run() -> None:
  """Defines the flags and runs the command.

  Not as the other commands start: its processes are strangers to each other,
  so that one that fails or comes late costs only its own shards.
  """
  encode_flags.define()
  flags.adopt_module_key_flags(encode_flags)  # --help lists them.
  app.run(_guarded, flags_parser=entry_point.parse)


def _guarded(argv: list[str]) -> None:
  logging.basicConfig(
    format="%(levelname)s: %(message)s", level=logging.WARNING, force=True
  )
  entry_point.resend_interrupts()
  entry_point.start_jax()
  try:
    main(argv)
  except entry_point.EXPECTED as error:
    entry_point.fail(error)
  except KeyboardInterrupt:
    print(
      "\ninterrupted; the same command goes on", file=sys.stderr, flush=True
    )
    os._exit(130)  # As the other commands do: XLA may be compiling.


if __name__ == "__main__":
  run()
