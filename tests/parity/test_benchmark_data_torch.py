"""The peer of our input pipeline does the same work, or the benchmark fails."""

import numpy as np
import pytest

pytest.importorskip(
  "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
)
from PIL import Image
from test_benchmark_data import DATA
from test_benchmarks import table

from benchmarks import crops_alike, photographs, readers, torch_loader
from data_pipelines.buckets import Buckets
from data_pipelines.scan import scan

pytestmark = pytest.mark.parity
SIDE = 64


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photographs")
  photographs.write_folder(folder, 4, longer=320)
  (group,) = scan(str(folder))
  return group.records


@pytest.fixture
def check(records, tmp_path):
  return lambda: crops_alike.check(records, SIDE, 320, tmp_path)


def test_crops_of_both_are_alike(check):
  assert check() < crops_alike.MEAN


def test_a_peer_that_cuts_elsewhere_is_found_out(check, monkeypatch):
  cropped = torch_loader.cropped

  def elsewhere(image, size, places, draft):
    return cropped(image, size, (places[0], (places[1] + 0.1) % 1), draft)

  monkeypatch.setattr(torch_loader, "cropped", elsewhere)
  with pytest.raises(ValueError, match="do not do the same work"):
    check()


def test_both_choose_among_the_same_buckets(records):
  buckets = Buckets([SIDE], readers.PATCH)
  sizes = buckets.sizes(SIDE)
  for record in records:
    height, width = record.height, record.width
    found = torch_loader.best(sizes, height, width)

    def lost(size, height=height, width=width):
      scales = size[0] / height, size[1] / width
      return min(scales) / max(scales)

    # Where scores are equal, as of h x w and w x h, either may come first.
    np.testing.assert_allclose(
      sorted(map(lost, found)),
      sorted(map(lost, buckets.candidates(height, width, 4))),
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_gives_crops_and_codes(records, workers):
  sizes = Buckets([SIDE], readers.PATCH).sizes(SIDE)
  dataset = torch_loader.Pictures(records, sizes, readers.tokenize, draft=True)
  stream = torch_loader.batches(dataset, [2, 0, 1, 3], 2, workers)
  items = [item for batch in stream for item in batch]
  for (x, codes), number in zip(items, [2, 0, 1, 3], strict=True):
    assert x.shape[0] == 3 and tuple(x.shape[1:]) in sizes
    assert -1 <= x.min() < x.max() <= 1
    wanted = readers.tokenize(records[number].captions[0])
    np.testing.assert_array_equal(codes.numpy(), wanted)
    with Image.open(records[number].path) as image:
      lying = np.sign(image.width - image.height)
    # It may have got the square, which is among the four that fit best.
    assert np.sign(x.shape[2] - x.shape[1]) in (lying, 0)


@pytest.mark.slow
@pytest.mark.long
def test_data_beside_torch():
  """Both tables, of rates and of ratios."""
  rows, text = table(*DATA)
  assert "differ by" in text
  ratios = [row for row in rows if row["examples/s"].startswith("torch")]
  assert len(ratios) == 7  # Of the second table, by names of the first.
  assert all(float(row["of a core"]) > 0 for row in ratios)
