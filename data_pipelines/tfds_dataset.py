"""Images with captions of TensorFlow Datasets, read without TensorFlow.

  tfds:NAME[/CONFIG][:VERSION][?split=train&image=image&caption=caption]

The values shown are the defaults; they are used as written, such as
`split=train[:90%]+test`. `image` names a feature of images. `caption` names a
text, several texts, or a class, whose name becomes the caption; a/b is feature
b of feature a. `data_dir=FOLDER`, an absolute path, is where the dataset lies,
if that is not the default of TFDS. `tfds:...#NUMBER` addresses one example.

The dataset must be prepared in a format with random access, for example by
`tfds build NAME --file_format=array_record`.
"""

import functools
import io
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_pipelines.records import Entry, Listing, parse_captions
from data_pipelines.source import BadRecord

PREFIX = "tfds:"
DEFAULTS = {"split": "train", "image": "image", "caption": "caption"}
KEYS = (*DEFAULTS, "data_dir")


class Dataset(NamedTuple):
  """An open dataset.

  Attributes:
    examples: data source of TFDS; images are the bytes of their files.
    image: name of the feature that holds the image.
    captions: returns the captions of an example.
  """

  examples: Any
  image: str
  captions: Callable[[dict[str, Any]], tuple[str, ...]]


def is_address(path: str) -> bool:
  """Whether a path is an address of TFDS rather than a file."""
  return path.startswith(PREFIX)


def list_examples(source: str) -> Listing:
  """Lists all examples of a dataset.

  Raises:
    ValueError: if the dataset does not exist, or lacks a feature.
  """
  count = len(_open(source).examples)
  entries = [Entry(f"{source}#{number}") for number in range(count)]
  return Listing(source, entries, [])


def read_example(path: str) -> tuple[tuple[str, ...], BinaryIO]:
  """Reads the captions and the image file of an example.

  Raises:
    BadRecord: if it cannot be read, or has no caption.
  """
  dataset, example = _example(path)
  try:
    captions = dataset.captions(example)
  except ValueError as error:
    raise BadRecord(f"{path}: {error}") from error
  return captions, io.BytesIO(example[dataset.image])


def read_image(path: str) -> bytes:
  """Reads the image file of an example.

  Raises:
    BadRecord: if it cannot be read.
  """
  dataset, example = _example(path)
  return example[dataset.image]


def parse_address(source: str) -> dict[str, str]:
  """Returns name, split, image, caption and, if given, data_dir.

  Raises:
    ValueError: if the address is malformed.
  """
  name, _, query = source.removeprefix(PREFIX).partition("?")
  options = dict(DEFAULTS)
  for item in filter(None, query.split("&")):
    key, _, value = item.partition("=")
    if key not in KEYS or not value:
      raise ValueError(f"{source}: {item!r} is none of {'=, '.join(KEYS)}=")
    options[key] = value
  if not name:
    raise ValueError(f"{source}: expected {PREFIX}NAME?split=train")
  return {"name": name, **options}


def _example(path: str) -> tuple[Dataset, dict[str, Any]]:
  source, _, number = path.rpartition("#")
  dataset = _open(source)
  try:
    return dataset, dataset.examples[int(number)]
  except (OSError, RuntimeError, ValueError, IndexError) as error:
    raise BadRecord(f"{path}: {error}") from error


@functools.lru_cache(maxsize=16)
def _open(source: str) -> Dataset:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ValueError(
      f"{source} needs the package tensorflow-datasets: {error}"
    ) from error
  options = parse_address(source)
  try:
    examples = tfds.data_source(
      options["name"],
      split=options["split"],
      data_dir=options.get("data_dir"),
      decoders={options["image"]: tfds.decode.SkipDecoding()},
      download=False,
    )
  except Exception as error:  # TFDS raises many types.
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    raise ValueError(
      f"{source} cannot be opened ({first_line}); prepare it with random "
      f"access, e.g. by `tfds build {options['name']} "
      "--file_format=array_record`, and name its folder by data_dir"
    ) from error
  features = examples.dataset_info.features
  image = dict(features.items()).get(options["image"])
  if not isinstance(image, tfds.features.Image):
    raise ValueError(
      f"{source}: image={options['image']} is not a feature of images; the "
      f"features are {', '.join(features)}"
    )
  captions = _caption_reader(source, options["caption"], features)
  dataset = Dataset(examples, options["image"], captions)
  _check_readable(source, dataset)
  return dataset


def _check_readable(source: str, dataset: Dataset) -> None:
  """Reads an example, so that a need for TensorFlow shows at once."""
  if not len(dataset.examples):
    raise ValueError(f"{source}: the split has no examples")
  try:
    data = dataset.examples[0][dataset.image]
  except ImportError as error:
    raise ValueError(
      f"{source}: its features cannot be read without TensorFlow ({error}); "
      "write its images to a folder with captions instead"
    ) from error
  if not isinstance(data, bytes):
    raise ValueError(
      f"{source}: image={dataset.image} is stored as {type(data).__name__}, "
      "not as the bytes of a PNG or JPEG file"
    )


def _caption_reader(
  source: str, path: str, features: Any
) -> Callable[[dict[str, Any]], tuple[str, ...]]:
  """Returns a function that reads the captions of an example."""
  import tensorflow_datasets as tfds

  keys, leaf = path.split("/"), features
  for key in keys:
    while isinstance(leaf, tfds.features.Sequence):
      leaf = leaf.feature
    if not isinstance(leaf, tfds.features.FeaturesDict) or key not in leaf:
      raise ValueError(
        f"{source}: caption={path} is not a feature; the features are "
        f"{', '.join(features)}"
      )
    leaf = leaf[key]
  while isinstance(leaf, tfds.features.Sequence):
    leaf = leaf.feature
  is_class = isinstance(leaf, tfds.features.ClassLabel)

  def captions(example: dict[str, Any]) -> tuple[str, ...]:
    value = functools.reduce(lambda item, key: item[key], keys, example)
    values = np.ravel(np.asarray(value, object)).tolist()
    if is_class:
      values = [leaf.int2str(int(label)) for label in values]
    texts = [v.decode() if isinstance(v, bytes) else v for v in values]
    return parse_captions(texts)

  return captions
