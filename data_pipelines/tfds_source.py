"""Pictures with captions of TensorFlow Datasets, read without TensorFlow.

  tfds:NAME[/CONFIG][:VERSION][?split=train&image=image&caption=caption]

Values are taken as they stand (`split=train[:90%]+test`), and those shown are
what is left out stands for. `image` names a feature of images. `caption` names
a text, texts, or a class, whose name it is; a/b is feature b of feature a.
`data_dir=FOLDER`, an absolute path, is where the dataset lies, if not where
tfds looks by itself. An example has the address `tfds:...#NUMBER`.

The dataset has to be prepared in a format with random access, for example by
`tfds build NAME --file_format=array_record`.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import records
from data_pipelines.annotations import Entry, Listing
from data_pipelines.records import Record
from data_pipelines.source import BadRecord
from lumina_jax.media import image_file as picture_file

PREFIX = "tfds:"
DEFAULTS = {"split": "train", "image": "image", "caption": "caption"}
KEYS = (*DEFAULTS, "data_dir")


class Dataset(NamedTuple):
  """Examples by number; their images are bytes of files.

  Attributes:
    examples: of tfds.
    image: feature.
    texts: example -> captions.
  """

  examples: Any
  image: str
  texts: Callable[[dict[str, Any]], tuple[str, ...]]


def listing(source: str) -> Listing:
  """All examples of a dataset.

  Raises:
    ValueError: if there is no such dataset, or it has other features.
  """
  count = len(_opened(source).examples)
  entries = [Entry(f"{source}#{number}") for number in range(count)]
  return Listing(source, entries, [])


def record(path: str) -> Record:
  """Captions and size of an example.

  Raises:
    BadRecord: if it has none.
  """
  dataset, example = _example(path)
  try:
    captions = dataset.texts(example)
  except ValueError as error:
    raise BadRecord(f"{path}: {error}") from error
  data = io.BytesIO(example[dataset.image])
  height, width = picture_file.size(path, data)
  return Record(path, captions, height, width)


def image_bytes(path: str) -> bytes:
  """The image of an example, as a file holds it.

  Raises:
    BadRecord: if it cannot be read.
  """
  dataset, example = _example(path)
  return example[dataset.image]


def _example(path: str) -> tuple[Dataset, dict[str, Any]]:
  source, _, number = path.rpartition("#")
  dataset = _opened(source)
  try:
    return dataset, dataset.examples[int(number)]
  except (OSError, RuntimeError, ValueError, IndexError) as error:
    raise BadRecord(f"{path}: {error}") from error


def parsed(source: str) -> dict[str, str]:
  """name, split, image, caption and, if given, data_dir of an address.

  Raises:
    ValueError: if it is none.
  """
  name, _, query = source.removeprefix(PREFIX).partition("?")
  asked = dict(DEFAULTS)
  for part in filter(None, query.split("&")):
    key, equals, value = part.partition("=")
    if key not in KEYS or not value:
      raise ValueError(f"{source}: {part!r} is no {'=, '.join(KEYS)}=")
    asked[key] = value
  if not name:
    raise ValueError(f"{source}: expected {PREFIX}NAME?split=train")
  return {"name": name, **asked}


@functools.lru_cache(maxsize=16)
def _opened(source: str) -> Dataset:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ValueError(
      f"{source} needs the package tensorflow-datasets: {error}"
    ) from error
  asked = parsed(source)
  try:
    examples = tfds.data_source(
      asked["name"],
      split=asked["split"],
      data_dir=asked.get("data_dir"),
      decoders={asked["image"]: tfds.decode.SkipDecoding()},
      download=False,
    )
  except Exception as error:  # Of many kinds, all about what was asked for.
    raise ValueError(
      f"{source} cannot be opened ({_first_line(error)}); it has to be "
      f"prepared with random access, e.g. by `tfds build {asked['name']} "
      "--file_format=array_record`, and to lie in data_dir"
    ) from error
  features = examples.dataset_info.features
  image = dict(features.items()).get(asked["image"])
  if not isinstance(image, tfds.features.Image):
    raise ValueError(
      f"{source}: image={asked['image']} is no feature of images; there are "
      f"{', '.join(features)}"
    )
  dataset = Dataset(examples, asked["image"], _texts(source, asked, features))
  _try(source, dataset)
  return dataset


def _first_line(error: Exception) -> str:
  return next(iter(str(error).splitlines()), type(error).__name__)


def _try(source: str, dataset: Dataset):
  """Reads an example, so that what needs TensorFlow is found at once."""
  if not len(dataset.examples):
    raise ValueError(f"{source}: no example is in that split")
  try:
    data = dataset.examples[0][dataset.image]
  except ImportError as error:
    raise ValueError(
      f"{source}: its features cannot be read without TensorFlow ({error}); "
      "write its pictures to a folder with captions instead"
    ) from error
  if not isinstance(data, bytes):
    raise ValueError(
      f"{source}: image={dataset.image} is stored as {type(data).__name__}, "
      "not as the bytes of a PNG or JPEG"
    )


def _texts(source: str, asked: dict[str, str], features: Any):
  """Returns what reads the captions of an example."""
  import tensorflow_datasets as tfds

  keys, leaf = asked["caption"].split("/"), features
  for key in keys:
    while isinstance(leaf, tfds.features.Sequence):
      leaf = leaf.feature
    if not isinstance(leaf, tfds.features.FeaturesDict) or key not in leaf:
      raise ValueError(
        f"{source}: caption={asked['caption']} is no feature; there are "
        f"{', '.join(features)}"
      )
    leaf = leaf[key]
  while isinstance(leaf, tfds.features.Sequence):
    leaf = leaf.feature
  of_class = isinstance(leaf, tfds.features.ClassLabel)

  def texts(example: dict[str, Any]) -> tuple[str, ...]:
    value = functools.reduce(lambda part, key: part[key], keys, example)
    values = np.ravel(np.asarray(value, object)).tolist()
    if of_class:
      values = [leaf.int2str(int(label)) for label in values]
    texts = [v.decode() if isinstance(v, bytes) else v for v in values]
    return records.captions(texts)

  return texts
