"""The benchmarks of the input pipeline run at their smallest sizes.

tests/parity/test_benchmark_data_torch.py tests the comparison with PyTorch.
"""

import io
import multiprocessing
import time

import numpy as np
import pytest
from PIL import Image
from support.benchmarks import DATA, IMAGES, table

from benchmarks import cpu_time, data, photographs
from benchmarks.cpu_time import Rate
from data_pipelines.scan import scan

pytestmark = pytest.mark.e2e


def test_photographs_have_the_requested_sizes_and_captions(tmp_path):
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
  """They take about 2.5 bits a pixel, as real photographs do."""
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


def test_cpu_seconds_include_children():
  def of_children():
    return cpu_time.now().cpu - time.process_time()

  counting = range(10_000_000)
  spawn = multiprocessing.get_context("spawn")
  child = spawn.Process(target=sum, args=(counting,))
  start = running = of_children()
  child.start()
  while child.is_alive():  # While it runs,
    running = max(running, of_children())
    time.sleep(0.02)
  child.join()
  assert child.exitcode == 0
  assert running > start
  assert of_children() > running - 0.02  # and afterwards; ticks of 10 ms.


def test_a_rate_measures_the_batches_in_the_middle(monkeypatch):
  made = []

  def stream():
    for examples in (9, 2, 3, 8, 8):
      made.append(examples)
      yield examples

  monkeypatch.setattr(
    cpu_time, "now", lambda: cpu_time.Clock(10.0 * sum(made), sum(made))
  )
  assert cpu_time.rate(stream(), batches=2, skipped=1) == Rate(10.0, 1.0)
  assert len(made) == 5  # It reads the stream to its end.


def test_ratios_are_per_round():
  rates = {"a": [Rate(1.0, 2.0), Rate(2.0, 1.0)], "b": [Rate(3.0, 1.0)] * 2}
  np.testing.assert_allclose(data.ratios(rates, "a", "b", "wall"), [3, 1.5])
  np.testing.assert_allclose(data.ratios(rates, "a", "b", "cpu"), [0.5, 1])


def test_data_without_torch_has_rates_and_no_ratio():
  rows, text = table(*DATA, "--notorch")
  assert [row["loader"] for row in rows] == [
    *("crop, draft", "crop, full", "1 thread", "1 worker")
  ]
  assert all(float(row["per core"]) > 0 for row in rows)
  assert "torch" not in text


@pytest.mark.long
def test_waiting_shares_are_shares():
  rows, _ = table(
    *("data_wait", *IMAGES, "--side=64", "--width=32", "--steps=2"),
    *("--loaders=1", "--trainings=1", "--milliseconds=1"),
  )
  assert [row["step"] for row in rows] == ["sleeps 1 ms", "lumina_jax.train"]
  for row in rows:
    assert 0 <= float(row["waits"].rstrip("%")) <= 100
    assert float(row["ms a step"]) >= 1
