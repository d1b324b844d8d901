"""PyTorch's loader does the same work as ours, or the benchmark fails."""

import numpy as np
import pytest

pytest.importorskip(
  "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
)
from PIL import Image
from support.benchmarks import DATA, table

from benchmarks import check_crops, loaders, photographs, torch_loader
from data_pipelines.buckets import Buckets
from data_pipelines.scan import scan

pytestmark = [pytest.mark.parity, pytest.mark.e2e]
SIDE = 64


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photographs")
  photographs.write_folder(folder, 4, longer=320)
  (group,) = scan(str(folder))
  return group.records


@pytest.fixture
def check(records, tmp_path):
  return lambda: check_crops.check(records, SIDE, 320, tmp_path)


def test_crops_of_both_are_equal(check):
  assert check() < check_crops.MEAN


def test_other_crops_are_refused(check, monkeypatch):
  crop = torch_loader.crop

  def shifted(image, size, position, draft):
    return crop(image, size, (position[0], (position[1] + 0.1) % 1), draft)

  monkeypatch.setattr(torch_loader, "crop", shifted)
  with pytest.raises(ValueError, match="do not do the same work"):
    check()


def test_both_choose_from_the_same_buckets(records):
  buckets = Buckets([SIDE], loaders.PATCH)
  sizes = buckets.sizes(SIDE)
  for record in records:
    height, width = record.height, record.width
    found = torch_loader.best_fit(sizes, height, width)

    def lost(size, height=height, width=width):
      scales = size[0] / height, size[1] / width
      return min(scales) / max(scales)

    # Scores may be equal, as of h x w and w x h; then either may come first.
    np.testing.assert_allclose(
      sorted(map(lost, found)),
      sorted(map(lost, buckets.candidates(height, width, 4))),
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_returns_crops_and_codes(records, workers):
  sizes = Buckets([SIDE], loaders.PATCH).sizes(SIDE)
  dataset = torch_loader.Images(records, sizes, loaders.tokenize, draft=True)
  stream = torch_loader.batches(dataset, [2, 0, 1, 3], 2, workers)
  items = [item for batch in stream for item in batch]
  for (x, codes), number in zip(items, [2, 0, 1, 3], strict=True):
    assert x.shape[0] == 3 and tuple(x.shape[1:]) in sizes
    assert -1 <= x.min() < x.max() <= 1
    expected = loaders.tokenize(records[number].captions[0])
    np.testing.assert_array_equal(codes.numpy(), expected)
    with Image.open(records[number].path) as image:
      orientation = np.sign(image.width - image.height)
    # The square may be among the four best buckets.
    assert np.sign(x.shape[2] - x.shape[1]) in (orientation, 0)


@pytest.mark.long
def test_data_against_torch():
  """Prints both tables, of rates and of ratios."""
  rows, text = table(*DATA)
  assert "largest mean difference" in text
  ratios = [row for row in rows if row["examples/s"].startswith("torch")][1:]
  assert len(ratios) == 7  # The second table without its head.
  assert all(float(row["per core"]) > 0 for row in ratios)
