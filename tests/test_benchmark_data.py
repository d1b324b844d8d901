"""The benchmarks of the input pipeline run, at their smallest.

What PyTorch is compared with is in tests/parity/test_benchmark_data_torch.py.
"""

import io
import multiprocessing
import time

import numpy as np
import pytest
from PIL import Image
from test_benchmarks import table

from benchmarks import cpu_time, data, photographs
from benchmarks.cpu_time import Rate
from data_pipelines.scan import scan

SMALL = ["--pictures=6", "--longer=150", "--rounds=1"]
DATA = ["data", *SMALL, "--sides=64", "--batches=1", "--most=1"]


def test_photographs_are_as_large_as_asked_and_have_captions(tmp_path):
  mean = photographs.write_folder(tmp_path, 6, longer=300)
  (group,) = scan(str(tmp_path))
  assert len(group.records) == 6
  for record in group.records:
    assert 260 <= max(record.height, record.width) <= 300
    assert 170 <= min(record.height, record.width) <= 200
    (caption,) = record.captions
    assert len(caption.split()) >= 16
  assert sum(r.height > r.width for r in group.records) == 2
  files = [path.stat().st_size for path in tmp_path.glob("*.jpg")]
  assert mean == pytest.approx(np.mean(files))


def test_photographs_are_neither_flat_nor_noise(tmp_path):
  """A decoder has as much to read as in real ones: about 2.5 bits a pixel."""
  photographs.write_folder(tmp_path, 1, longer=600)
  path = tmp_path / "00000.jpg"
  with Image.open(path) as image:
    bits = 8 * path.stat().st_size / (image.width * image.height)
    noise = np.random.default_rng(0).integers(
      0, 256, (image.height, image.width, 3), np.uint8
    )
  file = io.BytesIO()
  Image.fromarray(noise).save(file, "JPEG", quality=photographs.QUALITY)
  assert 1.5 < bits < 4
  assert bits < 0.6 * 8 * len(file.getvalue()) / noise[..., 0].size


def test_cpu_seconds_are_those_of_children_too():
  def elsewhere():
    return cpu_time.now().cpu - time.process_time()

  counting = range(20_000_000)
  spawn = multiprocessing.get_context("spawn")
  child = spawn.Process(target=sum, args=(counting,))
  began = running = elsewhere()
  child.start()
  while child.is_alive():  # Counted while it runs,
    running = max(running, elsewhere())
    time.sleep(0.02)
  child.join()
  assert child.exitcode == 0
  assert running > began
  assert elsewhere() > running - 0.02  # and once it is gone; ticks of 10 ms.


def test_a_rate_is_of_the_batches_in_the_middle(monkeypatch):
  made = []

  def stream():
    for examples in (9, 2, 3, 8, 8):
      made.append(examples)
      yield examples

  monkeypatch.setattr(
    cpu_time, "now", lambda: cpu_time.Clock(10.0 * sum(made), sum(made))
  )
  assert cpu_time.rate(stream(), batches=2, skipped=1) == Rate(10.0, 1.0)
  assert len(made) == 5  # Nothing is left to be made.


def test_ratios_are_taken_round_by_round():
  taken = {"a": [Rate(1.0, 2.0), Rate(2.0, 1.0)], "b": [Rate(3.0, 1.0)] * 2}
  np.testing.assert_allclose(data.ratios(taken, "a", "b", "wall"), [3, 1.5])
  np.testing.assert_allclose(data.ratios(taken, "a", "b", "cpu"), [0.5, 1])


@pytest.mark.slow
def test_data_alone_has_rates_and_no_ratio():
  rows, text = table(*DATA, "--notorch")
  assert [row["who"] for row in rows] == [
    *("crop, draft", "crop, full", "1 thread", "1 worker")
  ]
  assert all(float(row["of a core"]) > 0 for row in rows)
  assert "torch" not in text


@pytest.mark.slow
@pytest.mark.long
def test_waiting_shares_are_shares():
  rows, _ = table(
    *("data_wait", *SMALL, "--side=64", "--width=32", "--steps=2"),
    *("--readings=1", "--trainings=1", "--milliseconds=1"),
  )
  assert [row["step"] for row in rows] == ["sleeps 1 ms", "lumina_jax.train"]
  for row in rows:
    assert 0 <= float(row["waits"].rstrip("%")) <= 100
    assert float(row["ms a step"]) >= 1
