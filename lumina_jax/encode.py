"""Encodes images and captions once, into shards to train from.

  python -m lumina_jax.encode --source=photos --output=shards \\
    --resolutions=256 --vae=stabilityai/sdxl-vae \\
    --text_encoder=google/gemma-2b

writes latents and text features; without --vae pixels, without --text_encoder
captions as text. If it is interrupted, the same command continues. Several
processes share the work, each with a number, on one machine or on many that
see the same folders. They need not run at the same time. Each uses the first
device that it sees:

  CUDA_VISIBLE_DEVICES=3 python -m lumina_jax.encode ... \\
    --process_id=3 --num_processes=8

The last process writes manifest.json. --verify --output=shards compares all
checksums.
"""

import os
import pathlib
from typing import Any

from absl import flags

from data_pipelines import annotations, shard_checks, shard_folder, tfds_dataset
from data_pipelines.scan import scan
from data_pipelines.shard_settings import (
  CropSettings,
  FeatureEncoder,
  LatentEncoder,
  make_job,
)
from data_pipelines.shard_writer import ShardWriter
from data_pipelines.write_shards import write_shards
from lumina_jax.commands import encode_flags, start
from lumina_jax.commands.encode_flags import PATCH, PIXELS

MAX_SHOWN = 5  # Bad records that the summary names.


def main(argv: list[str]) -> None:
  """Encodes what the flags name, or verifies a folder."""
  args = flags.FLAGS
  if len(argv) > 1:
    raise ValueError(f"{argv[1]!r}: name the images with --source={argv[1]}")
  encode_flags.check(args)
  if args.verify:
    _verify(args.output)
    return
  latents, features = _load_encoders(args)
  groups = scan(args.source)
  job, settings = make_job(
    groups,
    _crop_settings(args, latents),
    latents,
    features,
    args.epochs,
    _root(args.source),
    records_per_shard=args.records_per_shard,
    batch_size=args.batch_size,
    threads=args.threads,
  )
  writer = ShardWriter(args.output, settings, job.shards, args.process_id)
  errors = [error for group in groups for error in group.errors]
  try:
    missing = write_shards(
      job, writer, args.max_bad, errors, args.process_id, args.num_processes
    )
  except KeyboardInterrupt:
    print("\nthe same command continues")
    raise
  _report(writer.path, missing)


def _load_encoders(
  args: Any,
) -> tuple[LatentEncoder | None, FeatureEncoder | None]:
  from lumina_jax.pretrained import data_encoders

  latents = features = None
  if args.vae is not None:
    latents = data_encoders.load_latent_encoder(
      args.vae, args.batch_size, args.vae_dtype
    )
  if args.text_encoder is not None:
    features = data_encoders.load_feature_encoder(
      args.text_encoder,
      args.tokenizer,
      args.dtype,
      hidden=args.hidden,
      max_tokens=args.max_tokens,
      add_eos=args.add_eos,
      cleaning=args.cleaning,
      system_prompt=args.system_prompt,
    )
  return latents, features


def _crop_settings(args: Any, latents: LatentEncoder | None) -> CropSettings:
  unit = args.unit or (latents.factor * PATCH if latents else PIXELS)
  if latents and unit % latents.factor:
    raise ValueError(
      f"--unit={unit} must be a multiple of {latents.factor}, the pixels of a "
      "latent"
    )
  return CropSettings(
    tuple(map(int, args.resolutions)),
    unit,
    args.max_aspect_ratio,
    args.bucket_choices,
    args.flip,
    args.channels,
    args.seed,
  )


def _root(source: str) -> str:
  """Common prefix of the paths of a source's images."""
  if tfds_dataset.is_address(source):
    return source.partition("#")[0]
  path = annotations.resolve(source)
  return f"{path if path.is_dir() else path.parent}/"


def _verify(folder: str | os.PathLike) -> None:
  manifest = shard_checks.verify(folder)
  print(
    f"{len(manifest['shards'])} shards of {manifest['records']:,} records in "
    f"{folder} have not changed since they were written"
  )


def _report(folder: pathlib.Path, missing: list[str]) -> None:
  """Prints what the folder holds, and the next command."""
  if missing:
    print(
      f"done; {len(missing)} shards of other processes are missing, such as "
      f"{missing[0]}. The last process writes {shard_folder.MANIFEST}"
    )
    return
  manifest = shard_folder.read_manifest(folder)
  bad = [f"{bad['name']}: {bad['reason']}" for bad in manifest["bad"]]
  bad += manifest["errors"]
  for message in list(dict.fromkeys(bad))[:MAX_SHOWN]:
    print(f"left out: {message}")
  if bad:
    print(f"{len(bad)} records left out; {shard_folder.MANIFEST} lists them")
  print(
    f"{manifest['records']:,} records, {manifest['bytes'] / 1e6:,.1f} MB, in "
    f"{len(manifest['shards'])} shards in {folder}\n"
    "train on them: python -m lumina_jax.train --config=... --workdir=... "
    f"--config.data.sources=\"('{folder.absolute()}',)\""
  )


def run() -> None:
  """Defines the flags and runs the command.

  Its processes do not join each other, unlike those of other commands: one that
  fails or starts late costs its own shards only.
  """
  encode_flags.define()
  flags.adopt_module_key_flags(encode_flags)  # --help lists them.
  start.run(main, together=False)


if __name__ == "__main__":
  run()
