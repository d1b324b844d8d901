"""Benchmarks check that both sides agree, and print a ratio for every size."""

import pytest

pytest.importorskip(
  "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
)
pytest.importorskip("diffusers", reason="diffusers is an oracle")
from support.benchmarks import ATTENTION, TRAIN_STEP, table

pytestmark = [pytest.mark.parity, pytest.mark.e2e]


def test_attention_against_torch():
  rows, text = table(*ATTENTION)
  assert "torch" in text
  assert len(rows) == 4
  assert all(float(row["torch / chunked"]) > 0 for row in rows)


@pytest.mark.long
def test_train_step_against_torch():
  """The benchmark checks loss and gradient norm of the first step.

  One side runs after the other, as on a GPU.
  """
  arguments = ["--nocompile", "--notogether", "--tokens=16", "--remat=full"]
  rows, text = table(*TRAIN_STEP, *arguments)
  assert text.count("first loss") == 2
  assert len(rows) == 1
  assert all(float(row["torch / ours"]) > 0 for row in rows)
