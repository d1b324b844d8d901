"""Checks folders of shards: their files, their settings, and their network."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines import shard_folder
from data_pipelines.shard_folder import EMPTY, sidecar_path
from lumina_jax.files import schema
from lumina_jax.files.json_file import read_json

MAX_CHARACTERS = 40  # Of a setting in a message.
PATH = "path"  # Settings of this name are locations, which may change.


def file_error(
  folder: pathlib.Path, file: str, size: int, sha256: str | None = None
) -> str:
  """Returns what is wrong with the file of a shard; "" = nothing.

  Args:
    folder: folder of the file.
    file: name of the file.
    size: expected size in bytes.
    sha256: expected checksum, which reads all of the file; None = any.
  """
  path = folder / file
  if not path.exists():
    return f"{file} is missing"
  actual = path.stat().st_size
  if actual != size:
    return f"{file} has {actual:,} bytes instead of {size:,}"
  if sha256 is not None and checksum(path) != sha256:
    return f"{file} has changed since it was written (another checksum)"
  return ""


def folder_errors(
  folder: pathlib.Path, manifest: dict[str, Any], verify: bool
) -> list[str]:
  """Returns what is wrong with the files of a folder.

  Args:
    folder: folder of shards.
    manifest: its manifest.
    verify: whether to compare checksums, which reads all files.
  """
  errors = []
  for shard in manifest["shards"]:
    sha256 = shard["sha256"] if verify else None
    errors.append(file_error(folder, shard["file"], shard["bytes"], sha256))
    if not sidecar_path(folder / shard["file"]).exists():
      errors.append(f"the sidecar of {shard['file']} is missing")
  empty = manifest["empty"]
  if empty and not (folder / EMPTY).exists():
    errors.append(f"{EMPTY} is missing")
  elif empty and checksum(folder / EMPTY) != empty:
    errors.append(f"{EMPTY} has changed since it was written")
  return [error for error in errors if error]


def verify(folder: str | os.PathLike) -> dict[str, Any]:
  """Compares all checksums of a folder, and returns its manifest.

  Raises:
    FileNotFoundError: if it is not a complete folder of shards.
    ValueError: if files are missing or have changed, naming them.
  """
  folder = shard_folder.local_path(folder)
  manifest = shard_folder.read_manifest(folder)
  errors = folder_errors(folder, manifest, verify=True)
  if errors:
    raise ValueError(f"{folder}: {'; '.join(errors)}")
  return manifest


def check_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
  """Compares the settings of a folder with those of this run.

  Raises:
    ValueError: if they differ, naming the differences.
  """
  old, new = _flat(read_json(path)), _flat(settings)
  differences = [
    f"{name}: {_short(old.get(name))} there, {_short(new.get(name))} now"
    for name in sorted(new.keys() | old.keys())
    if new.get(name) != old.get(name)
  ]
  if differences:
    raise ValueError(
      f"{path.parent} was started with other settings "
      f"({'; '.join(differences)}); use the same ones, or name another folder"
    )


def check_network(
  folder: str | os.PathLike,
  settings: dict[str, Any],
  channels: int,
  text: Mapping[str, Any] | None,
) -> None:
  """Compares the settings of a folder with what a network takes.

  Args:
    folder: folder of shards, for messages.
    settings: its settings.
    channels: channels C of the latents of the network.
    text: how captions become the features of the network, among others their
      "width"; None = the network encodes captions itself.

  Raises:
    ValueError: if they differ, naming both values.
  """
  if settings["channels"] != channels:
    raise ValueError(
      f"{folder} has samples of {settings['channels']} channels, the network "
      f"takes {channels}; encode with the autoencoder of the network"
    )
  encoded = settings["text_encoder"]
  if encoded is None and text is None:
    return
  if encoded is None:
    raise ValueError(
      f"{folder} has captions as text, the network takes features of width "
      f"{text['width']}; encode again with --text_encoder"
    )
  encoded = encoded["frozen"]
  if text is None:
    raise ValueError(
      f"{folder} has captions as features of width {encoded['width']}, which "
      "this network does not take; encode again without --text_encoder, or "
      "train a network with a frozen text encoder"
    )
  differences = [
    f"{name} = {encoded[name]!r} there, {text[name]!r} in the config"
    for name in text
    if encoded[name] != text[name]
  ]
  if differences:
    raise ValueError(
      f"{folder} has captions that were encoded with other settings: "
      f"{'; '.join(differences)}"
    )


def settings_digest(settings: dict[str, Any]) -> str:
  """Checksum of settings, independent of paths."""
  text = json.dumps(_flat(settings), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def checksum(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _flat(values: dict[str, Any]) -> dict[str, Any]:
  flat = schema.flatten(values)
  return {name: x for name, x in flat.items() if name.split(".")[-1] != PATH}


def _short(value: Any) -> str:
  text = repr(value)
  if len(text) < MAX_CHARACTERS:
    return text
  return f"{text[:MAX_CHARACTERS]}..."
