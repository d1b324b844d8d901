"""Images of a dataset that TFDS wrote, read without TensorFlow."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_pipelines import tfds_dataset
from data_pipelines.buckets import Buckets
from data_pipelines.image_loader import load_crop
from data_pipelines.image_source import ImageSource, ImageSourceConfig
from data_pipelines.manifest import read_manifest, write_manifest
from data_pipelines.scan import scan
from data_pipelines.source import BadRecord, Draw
from lumina_jax.tokens import Grid

tfds = pytest.importorskip("tensorflow_datasets")

COUNT = 6


def encoded(number):
  """An image whose width and gray value tell its number; one is broken."""
  if number == COUNT - 1:
    return io.BytesIO(b"a snowman")
  file = io.BytesIO()
  image = Image.new("RGB", (20 + number, 30), (10 * number,) * 3)
  image.save(file, "PNG")
  file.seek(0)
  return file


class Shades(tfds.core.GeneratorBasedBuilder):
  """Gray fields."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features
    return tfds.core.DatasetInfo(
      builder=self,
      features=features.FeaturesDict(
        {
          "image": features.Image(encoding_format="png"),
          "caption": features.Text(),
          "several": features.Sequence({"text": features.Text()}),
          "label": features.ClassLabel(names=["dark", "light"]),
          "number": features.Scalar(np.int32),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for number in range(COUNT):
      yield (
        number,
        {
          "image": encoded(number),
          "caption": f"shade {number}" if number else "",
          "several": [{"text": "a"}, {"text": str(number)}],
          "label": number % 2,
          "number": number,
        },
      )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  Shades(data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


def address(folder, **options):
  items = [f"{key}={value}" for key, value in options.items()]
  return f"tfds:shades?{'&'.join([*items, f'data_dir={folder}'])}"


def test_examples_are_records(folder):
  source = address(folder)
  (group,) = scan(source)
  assert group.name == source
  records = {record.captions[0]: record for record in group.records}
  assert set(records) == {f"shade {n}" for n in range(1, COUNT - 1)}
  for number in range(1, COUNT - 1):
    record = records[f"shade {number}"]
    assert (record.height, record.width) == (30, 20 + number)
    assert record.path.startswith(f"{source}#")
    x = load_crop(record.path, (16, 16), np.random.default_rng(0), 3, False)
    np.testing.assert_allclose(x, 10 * number / 127.5 - 1, atol=1e-6)
  assert len(group.errors) == 2
  text = "\n".join(group.errors)
  for reason in ("an empty caption", "not an image that can be read"):
    assert f": {reason}" in text
  assert text.count(f"{source}#") == 2


@pytest.mark.parametrize(
  "caption, texts",
  [
    ("label", {("dark",), ("light",)}),
    ("several/text", {("a", str(n)) for n in range(COUNT - 1)}),
  ],
)
def test_captions_are_classes_or_nested_features(folder, caption, texts):
  (group,) = scan(address(folder, caption=caption))
  assert {record.captions for record in group.records} == texts


def test_splits_are_written_as_tfds_writes_them(folder):
  split = "train[:50%]+train[90%:]"
  count = len(tfds_dataset.list_examples(address(folder, split=split)).entries)
  assert count == COUNT // 2 + 1


def test_a_manifest_is_enough_to_draw_from(folder, tmp_path):
  write_manifest(tmp_path / "m.jsonl", scan(address(folder)))
  (group,) = read_manifest(tmp_path / "m.jsonl")
  source = ImageSource(
    group.records,
    Buckets([16], 8),
    lambda h, w: Grid((h, w), (8, 8), False, False),
    lambda caption: np.zeros((len(caption.split()), 1), np.int32),
    ImageSourceConfig(
      channels=1, bucket_choices=1, caption_dropout=0.0, flip=False, max_words=4
    ),
    seed=0,
  )
  for record, kept in enumerate(group.records):
    sample = source.sample(Draw(0, record, record))
    assert sample.caption == kept.captions[0]
    shade = 10 * int(sample.caption.split()[1])
    np.testing.assert_allclose(sample.patches, shade / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(split="test"), "cannot be opened .*test"),
    (
      dict(image="number"),
      "image=number is not a feature of images; .* number",
    ),
    (dict(image="picture"), "image=picture is not a feature of images"),
    (dict(caption="title"), "caption=title is not a feature; the features are"),
    (dict(caption="several/name"), "caption=several/name is not a feature"),
    (
      dict(shuffle=1),
      "'shuffle=1' is none of split=, image=, caption=, data_dir=",
    ),
  ],
)
def test_addresses_of_features_that_do_not_exist(folder, options, message):
  with pytest.raises(ValueError, match=message):
    scan(address(folder, **options))


def test_datasets_that_do_not_exist(tmp_path):
  source = f"tfds:no_such_set?data_dir={tmp_path}"
  with pytest.raises(
    ValueError, match=r"cannot be opened .* `tfds build no_su"
  ):
    scan(source)
  # That is not a bad record.
  with pytest.raises(ValueError, match="cannot be opened"):
    load_crop(f"{source}#0", (16, 16), np.random.default_rng(0), 3, False)
  with pytest.raises(ValueError, match=r"expected tfds:NAME"):
    scan("tfds:?split=train")


def test_examples_that_do_not_exist(folder):
  for number in (COUNT, "x"):
    with pytest.raises(BadRecord, match=f"#{number}: "):
      tfds_dataset.read_example(f"{address(folder)}#{number}")


@pytest.mark.e2e
def test_jax_and_tensorflow_are_not_imported(folder):
  code = (
    "import sys; from data_pipelines.scan import scan\n"
    f"assert len(scan({address(folder)!r})[0].records) == {COUNT - 2}\n"
    "print(sorted({'jax', 'flax', 'tensorflow'} & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.splitlines()[-1] == "[]"
