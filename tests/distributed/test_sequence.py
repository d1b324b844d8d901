"""One sequence over many devices: attention, gradients and samples are equal.

Tolerances allow for float32 sums in another order.
"""

import itertools
import json

import numpy as np
import pytest
from support.fake_devices import SCRIPTS, result, run, run_all

from tests.distributed.sequence_parity import SPLITS

pytestmark = pytest.mark.e2e
long = pytest.mark.long
ONE, MIXED = "data=1", "data=2,fsdp=2,context=2"


@pytest.mark.parametrize(
  ("mesh", "kernels"),
  [
    pytest.param("context=8", ("chunked",), id="context"),
    pytest.param("context=8", ("splash", "dense"), marks=long),
    pytest.param("data=2,context=4", ("chunked", "splash"), marks=long),
    pytest.param("tensor=2,context=4", ("chunked", "splash"), marks=long),
    pytest.param("data=4,context=2", ("chunked",), marks=long),
  ],
)
def test_attention_and_its_gradients_match_the_definition(mesh, kernels):
  """Every split and kernel, MHA and GQA 4:1; full, short and packed rows."""
  printed = run(8, SCRIPTS / "sequence_parity.py", mesh, *kernels)
  errors = [json.loads(line) for line in printed.splitlines()]
  found = {(x["kernel"], x["split"], x["kv_heads"]) for x in errors}
  expected = set(itertools.product(kernels, SPLITS[mesh], (8, 2)))
  expected -= set(itertools.product(["dense"], ["ring", "2", "4"], (8, 2)))
  assert found == expected
  for x in errors:
    assert set(x["errors"]) == {"full", "ragged", "packed"}
    for layout, values in x["errors"].items():
      assert len(values) == 4  # the output, and gradients of q, k and v
      assert max(values) < 1e-5, (x, layout)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
  """Loss and gradients of a step on one device and on a mixed mesh."""
  folder = tmp_path_factory.mktemp("gradients")
  found = result(run(8, SCRIPTS / "gradients.py", folder, ONE, MIXED))
  assert [x["devices"] for x in found] == [1, 8]
  return np.load(folder / "0.npz"), np.load(folder / "1.npz")


def compare(found, expected):
  """Compares each gradient to its own size, and tiny ones to all."""
  assert set(found.files) == set(expected.files) and len(found.files) > 40
  largest = max(np.abs(expected[name]).max() for name in expected.files)
  for name in expected.files:
    size = max(np.abs(expected[name]).max(), 1e-4 * largest)
    error = np.abs(found[name] - expected[name]).max() / size
    assert error < 1e-5, (name, error)


def test_every_gradient_of_a_step_equals_one_device(gradients):
  expected, found = gradients
  compare(found, expected)


@long
def test_gradients_on_other_meshes_equal_one_device(gradients, tmp_path):
  runs = (
    "data=1,context=8",
    "data=1,context=8 sequence_split=ring",
    "data=1,tensor=2,context=4",
    "data=1,tensor=2,context=4 remat=attention",
  )
  run(8, SCRIPTS / "gradients.py", tmp_path, *runs)
  for number in range(len(runs)):
    compare(np.load(tmp_path / f"{number}.npz"), gradients[0])


@long
@pytest.mark.parametrize(
  ("mesh", "rows"),
  [
    # Processes share the rows, or each holds half of every row.
    (MIXED, ([0, 2], [4, 6])),
    ("data=1,context=8 sequence_split=2", ([0], [0])),
  ],
  ids=["rows", "length"],
)
def test_gradients_in_two_processes_equal_one_device(
  mesh, rows, gradients, tmp_path
):
  printed = run_all(2, 4, SCRIPTS / "gradients.py", tmp_path, mesh)
  found = [result(text)[0] for text in printed]
  assert [x["devices"] for x in found] == [8, 8]
  assert tuple(x["rows"] for x in found) == rows
  compare(np.load(tmp_path / "0.npz"), gradients[0])


@long
def test_a_sample_of_16384_tokens_equals_one_device(tmp_path):
  """Its one row, guided, is rounded up to two."""
  words = tmp_path, ONE, "fsdp=2,context=4"
  found = result(run(8, SCRIPTS / "long_sample.py", *words))
  assert found[1] == {"devices": 8, "shards": 8}
  one, eight = (np.load(tmp_path / f"{number}.npy") for number in range(2))
  assert one.std() > 0.5
  np.testing.assert_allclose(eight, one, atol=2e-5 * np.abs(one).max())


@long
def test_samples_guided_for_part_of_the_time_equal_one_device(tmp_path):
  """Sharded programs with a branch, and with a loop of any length, agree."""
  run(4, SCRIPTS / "guided_samples.py", tmp_path, ONE, "data=2,context=2")
  one, four = (np.load(tmp_path / f"{number}.npz") for number in range(2))
  assert np.abs(one["ab2"] - one["always"]).max() > 0.1  # The branch matters.
  assert one["dopri5 evaluations"][0] > 13  # The loop runs more than once.
  for name in one.files:
    size = np.abs(one[name]).max()
    # Rounding changes the steps of an adaptive solver.
    atol = (1e-3 if name == "dopri5" else 2e-5) * size
    np.testing.assert_allclose(four[name], one[name], atol=atol, err_msg=name)
