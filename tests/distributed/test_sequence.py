"""One sequence over many devices: attention, gradients and samples are one's.

Tolerances are of float32: sums are taken in another order there.
"""

import itertools
import json
import re

import numpy as np
import pytest
from support.fake_devices import HERE, start, start_two

from tests.distributed.sequence_parity import SPLITS

slow = pytest.mark.slow
long = [slow, pytest.mark.long]


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
def test_attention_and_its_gradients_are_the_definition(mesh, kernels):
  """Every split, kernel, MHA and GQA 4:1; full, ragged and packed rows."""
  printed = start(8, HERE / "sequence_parity.py", mesh, *kernels)
  lines = [json.loads(line) for line in printed.splitlines()]
  found = {(x["kernel"], x["split"], x["kv_heads"]) for x in lines}
  wanted = set(itertools.product(kernels, SPLITS[mesh], (8, 2)))
  wanted -= set(itertools.product(["dense"], ["ring", "2", "4"], (8, 2)))
  assert found == wanted
  for line in lines:
    assert set(line["errors"]) == {"full", "ragged", "packed"}
    for layout, errors in line["errors"].items():
      assert len(errors) == 4  # The output, and gradients of q, k and v.
      assert max(errors) < 1e-5, (line, layout)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
  """Loss and every gradient of a step, on one device."""
  file = tmp_path_factory.mktemp("one") / "gradients.npz"
  start(1, HERE / "gradients.py", file, "data=1")
  return np.load(file)


def compare(file, expected):
  """Every gradient, to its own size; those that are 0 by nature to all."""
  found = np.load(file)
  assert set(found.files) == set(expected.files) and len(found.files) > 40
  largest = max(np.abs(expected[name]).max() for name in expected.files)
  for name in expected.files:
    size = max(np.abs(expected[name]).max(), 1e-4 * largest)
    error = np.abs(found[name] - expected[name]).max() / size
    assert error < 1e-5, (name, error)


@pytest.mark.parametrize(
  "mesh",
  [
    ("data=2", "fsdp=2", "context=2"),
    pytest.param(("data=1", "context=8"), marks=long),
    pytest.param(
      ("data=1", "context=8", "model.sequence_split=ring"), marks=long
    ),
    pytest.param(("data=1", "tensor=2", "context=4"), marks=long),
    pytest.param(
      ("data=1", "tensor=2", "context=4", "model.remat=attention"), marks=long
    ),
  ],
  ids=" ".join,
)
def test_every_gradient_of_a_step_is_that_of_one_device(
  mesh, one_device, tmp_path
):
  printed = start(8, HERE / "gradients.py", tmp_path / "g.npz", *mesh)
  assert json.loads(printed)["devices"] == 8
  compare(tmp_path / "g.npz", one_device)


@slow
@pytest.mark.parametrize(
  ("mesh", "rows"),
  [
    # Processes share the rows out, or each holds half of all of them.
    pytest.param(
      ("data=2", "fsdp=2", "context=2"), ([0, 2], [4, 6]), marks=long
    ),
    (("data=1", "context=8", "model.sequence_split=2"), ([0], [0])),
  ],
  ids=["rows", "length"],
)
@pytest.mark.long
def test_two_processes_have_the_gradients_of_one(
  mesh, rows, one_device, tmp_path
):
  printed = start_two(4, HERE / "gradients.py", tmp_path / "g.npz", *mesh)
  # Around it they print who they talk to.
  told = [json.loads(re.search(r'{"dev.*}', text)[0]) for text in printed]
  assert [x["devices"] for x in told] == [8, 8]
  assert tuple(x["rows"] for x in told) == rows
  compare(tmp_path / "g.npz", one_device)


@slow
@pytest.mark.long
def test_a_picture_of_16384_tokens_is_that_of_one_device(tmp_path):
  """Its one row, guided, is rounded up to two."""
  script = HERE / "one_picture.py"
  start(1, script, tmp_path / "one.npy")
  mesh = "fsdp=2", "context=4"
  printed = start(8, script, tmp_path / "eight.npy", *mesh)
  assert json.loads(printed) == {"devices": 8, "parts": 8}
  one, eight = (np.load(tmp_path / f"{n}.npy") for n in ("one", "eight"))
  assert one.std() > 0.5
  np.testing.assert_allclose(eight, one, atol=2e-5 * np.abs(one).max())


@slow
@pytest.mark.long
def test_pictures_guided_for_part_of_the_time_are_those_of_one_device(tmp_path):
  """Sharded programs with a branch, and with a loop of any length, agree."""
  script = HERE / "guided_pictures.py"
  start(1, script, tmp_path / "one.npz")
  printed = start(4, script, tmp_path / "four.npz", "data=2", "context=2")
  assert json.loads(printed) == {"devices": 4}
  one, four = (np.load(tmp_path / f"{name}.npz") for name in ("one", "four"))
  assert np.abs(one["ab2"] - one["always"]).max() > 0.1  # The branch matters.
  assert one["dopri5 evaluations"][0] > 13  # The loop runs more than once.
  for name in one.files:
    size = np.abs(one[name]).max()
    # An adaptive solver makes other steps of other roundings.
    atol = (1e-3 if name == "dopri5" else 2e-5) * size
    np.testing.assert_allclose(four[name], one[name], atol=atol, err_msg=name)
