"""PyTorch files and PyTorch: each reads what the other writes."""

import argparse
import collections

import ml_dtypes
import numpy as np
import pytest
from support.pth_files import (
  DTYPES,
  NAMESPACE,
  assert_same,
  read_all,
  refusal,
  samples,
  write,
)

from lumina_jax.interop import pth

pytestmark = [pytest.mark.e2e, pytest.mark.parity]


@pytest.fixture(scope="module")
def torch():
  return pytest.importorskip(
    "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
  )


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_reads_our_tensors(torch, path, dtype, mmap):
  arrays = samples(dtype)
  write(path, arrays)
  found = torch.load(path, weights_only=True, mmap=mmap)
  assert type(found) is collections.OrderedDict
  assert list(found) == list(arrays)
  for name, x in found.items():
    assert_same(as_numpy(torch, x), arrays[name])
    assert x.is_contiguous()
    assert x.data_ptr() % 64 == 0 or not mmap


def as_numpy(torch, x):
  x = x.detach().contiguous()
  if x.dtype == torch.bfloat16:
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return x.numpy()


def test_torch_reads_our_namespace(torch, path):
  pth.write_namespace(path, NAMESPACE)
  expected = argparse.Namespace(**NAMESPACE)
  assert torch.load(path, weights_only=False) == expected
  with torch.serialization.safe_globals([argparse.Namespace]):
    assert torch.load(path, weights_only=True) == expected


def test_we_read_namespaces_of_torch(torch, path):
  for protocol in (2, 4):
    torch.save(
      argparse.Namespace(**NAMESPACE, precision=torch.bfloat16),
      path,
      pickle_protocol=protocol,
    )
    found = pth.read_namespace(path)
    assert found == NAMESPACE | {"precision": "torch.bfloat16"}
  torch.save(argparse.Namespace(f=len), path)
  assert "builtins.len" in refusal(path, pth.read_namespace)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_we_read_tensors_of_torch(torch, path, protocol):
  base = torch.randn(4, 6, 2)
  tensors = {
    "base": base,
    "tied": base,
    "view": base[1:3, ::2],
    "transposed": base.permute(2, 0, 1),
    "expanded": torch.arange(3).expand(5, 3),
    "scalar": torch.tensor(3.5),
    "scalar_view": base[2, 3, 1],
    "empty": torch.zeros(0, 3),
    "empty_view": base[4:, :, 0],
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    **{
      str(dtype): (torch.randn(3, 3) * 3).to(dtype)
      for dtype in (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
      )
    },
  }
  torch.save(tensors, path, pickle_protocol=protocol)
  found = pth.read(path)
  assert found.keys() == tensors.keys()
  for name, x in tensors.items():
    assert_same(found[name].read(), as_numpy(torch, x))
    assert found[name].shape == tuple(x.shape)


def test_we_read_checkpoints_of_torch(torch, path, monkeypatch):
  model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  model[0].weight.note = 1  # Parameters with attributes have another opcode.
  state, moment = model.state_dict(), torch.randn(2, 3)
  size, device = torch.Size([1, 2]), torch.device("cuda", 1)
  checkpoint = {
    "state_dict": state,
    "parameters": list(model.parameters()),
    "optimizer_states": [{"state": {0: {"exp_avg": moment}}, "lr": 1e-4}],
    "milestones": collections.Counter([3, 5]),
    "epoch": 3,
    "hyper_parameters": {"size": size, "on": device, "type": torch.float32},
    "tasks": {"a", "b"},
  }
  monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
  torch.save(checkpoint, path)
  assert b"cuda:0" in path.read_bytes()
  found = read_all(pth.read(path))
  parameters, weights = found.pop("parameters"), found.pop("state_dict")
  (optimizer,) = found.pop("optimizer_states")
  assert found == {
    "milestones": {3: 1, 5: 1},
    "epoch": 3,
    "hyper_parameters": {
      "size": (1, 2),
      "on": "cuda:1",
      "type": "torch.float32",
    },
    "tasks": {"a", "b"},
  }
  assert list(weights) == list(state)
  for name, x in state.items():
    assert_same(weights[name], x.numpy())
  for array, x in zip(parameters, model.parameters(), strict=True):
    assert_same(array, x.detach().numpy())
  assert_same(optimizer["state"][0]["exp_avg"], moment.numpy())


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_objects_of_torch_that_are_not_read(torch, path):
  for value, message in (
    (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    (torch.zeros(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    (torch.zeros(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
    (torch.zeros(2).untyped_storage(), "holds a Storage"),
    (torch.tensor([1j]).conj().imag, "resolve_neg"),
    (np.float64(1), "scalar"),
  ):
    torch.save({"x": value}, path)
    assert message in refusal(path)
  torch.save({}, path, _use_new_zipfile_serialization=False)
  assert "before PyTorch 1.6" in refusal(path)
  torch.jit.script(torch.nn.Linear(1, 1)).save(path)
  assert "TorchScript" in refusal(path)


def test_files_without_checksums_are_read(torch, path):
  torch.serialization.set_crc32_options(False)
  try:
    torch.save({"x": torch.ones(3)}, path)
  finally:
    torch.serialization.set_crc32_options(True)
  assert pth.read(path)["x"].read().tolist() == [1, 1, 1]
