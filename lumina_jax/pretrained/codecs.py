"""Codecs in folders, by the class that their config.json names."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from lumina_jax.encoders.codec import Codec
from lumina_jax.encoders.vae import VaeConfig
from lumina_jax.files.json_file import read_json
from lumina_jax.interop.hugging_face import CONFIG
from lumina_jax.interop.vae import load_vae, save_vae


class Format(NamedTuple):
  """How codecs of a class are stored.

  Attributes:
    config: class of `Codec.cfg`.
    load: takes a folder and `mesh`, and returns the codec.
    save: writes a codec to a new folder.
  """

  config: type
  load: Callable[..., Codec]
  save: Callable[[Any, pathlib.Path], None]


IMAGES = Format(VaeConfig, load_vae, save_vae)
FORMATS = {"AutoencoderKL": IMAGES}


def load(folder: pathlib.Path, mesh: Mesh | None) -> Codec:
  """Loads a codec.

  Args:
    folder: folder of the codec.
    mesh: devices that each hold a copy; None uses one.

  Raises:
    FileNotFoundError: if the folder holds no codec.
    ValueError: if it is of another class or its files are broken.
  """
  path = folder / CONFIG
  name = read_json(path).get("_class_name") if path.exists() else None
  return FORMATS.get(name, IMAGES).load(folder, mesh=mesh)


def save(codec: Codec, folder: pathlib.Path) -> None:
  """Writes a codec to a new folder that `load` reads.

  Raises:
    ValueError: for a codec of a class without a format.
  """
  for found in FORMATS.values():
    if isinstance(codec.cfg, found.config):
      return found.save(codec, folder)
  raise ValueError(
    f"{type(codec).__name__}: no format stores this codec; pipelines with it "
    "cannot be saved"
  )
