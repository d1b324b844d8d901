"""Benchmarks compare like with like, and print a ratio for every size."""

import pytest

pytest.importorskip(
  "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
)
pytest.importorskip("diffusers", reason="diffusers is an oracle")
from test_benchmarks import ATTENTION, TRAIN_STEP, table

pytestmark = pytest.mark.parity


@pytest.mark.slow
def test_attention_beside_torch():
  rows, text = table(*ATTENTION)
  assert "torch" in text
  assert len(rows) == 4
  assert all(float(row["torch / chunked"]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.long
def test_train_step_beside_torch():
  """Loss and gradient of the first step agree, or the benchmark fails.

  One side after the other, as on a GPU.
  """
  how = ["--notogether", "--tokens=16", "--remat=full"]
  rows, text = table(*TRAIN_STEP, "--nocompile", *how)
  assert text.count("first loss") == 2
  assert len(rows) == 1
  assert all(float(row["torch / ours"]) > 0 for row in rows)
