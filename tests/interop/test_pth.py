"""PyTorch files: what is written is read back; damage is noticed."""

import pickle
import random
import tracemalloc
import zipfile

import numpy as np
import pytest
from support.pth_files import (
  DTYPES,
  NAMESPACE,
  PROTO,
  assert_same,
  opcodes,
  pack,
  read_all,
  refusal,
  samples,
  tensor_opcodes,
  write,
)

from lumina_jax.interop import pth, storages


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_read_as_written(path, dtype):
  arrays = samples(dtype)
  write(path, arrays)
  found = pth.read(path)
  assert list(found) == list(arrays)
  for name, tensor in found.items():
    assert isinstance(tensor, pth.Tensor)
    assert (tensor.shape, tensor.dtype) == (arrays[name].shape, dtype)
    array = tensor.read()
    assert_same(array, arrays[name])
    assert array.flags.c_contiguous
    array[...] = 0  # The caller owns it.
    assert_same(tensor.read(), arrays[name])


def test_values_are_read_as_written(path):
  write(path, {})
  assert pth.read(path) == {}
  for values in (NAMESPACE, {}):
    pth.write_namespace(path, values)
    assert pth.read_namespace(path) == values


@pytest.mark.parametrize("large", [pth.LARGE, 1])
def test_storages_are_aligned(path, monkeypatch, large):
  monkeypatch.setattr(pth, "LARGE", large)
  arrays = samples(np.float32)
  write(path, arrays)
  data = path.read_bytes()
  with zipfile.ZipFile(path) as file:
    assert file.testzip() is None
    for info in file.infolist():
      if "/data/" in info.filename:
        header = data[info.header_offset :][: storages.LOCAL_HEADER.size]
        sizes = storages.LOCAL_HEADER.unpack(header)[1:]
        assert (info.header_offset + len(header) + sum(sizes)) % 64 == 0
  for name, tensor in pth.read(path).items():
    assert_same(tensor.read(), arrays[name])


def test_one_tensor_is_in_memory_at_a_time(path):
  size = 1 << 20
  tracemalloc.start()
  with pth.Writer(path) as file:
    for i in range(8):
      file.add(str(i), np.full(size, i, np.float32))
  assert tracemalloc.get_traced_memory()[1] < 2.5 * 4 * size
  tracemalloc.reset_peak()
  found = pth.read(path)
  assert tracemalloc.get_traced_memory()[1] < size
  tracemalloc.reset_peak()
  assert found["5"].read().min() == 5
  assert tracemalloc.get_traced_memory()[1] < 1.5 * 4 * size
  tracemalloc.stop()


def test_arrays_that_cannot_be_written(path):
  with pth.Writer(path) as file:
    file.add("a", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"weights\.pth already has a"):
      file.add("a", np.zeros(2, np.float32))
    for dtype in (np.complex64, ">f4", "U3", object):
      with pytest.raises(ValueError, match=r"b has dtype .*; convert it to"):
        file.add("b", np.zeros(2, dtype))
  with pytest.raises(ValueError, match=r"weights\.pth is closed"):
    file.add("b", np.zeros(2, np.float32))
  file.close()
  assert list(pth.read(path)) == ["a"]


def test_an_unfinished_file_is_refused(path):
  with pytest.raises(KeyError), pth.Writer(path) as file:
    file.add("a", np.zeros(2, np.float32))
    raise KeyError
  assert "unfinished" in refusal(path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"offset": 1}, "exceeds its storage"),
    ({"shape": (3, 3)}, "exceeds its storage"),
    ({"strides": (3, 2)}, "exceeds its storage"),
    ({"strides": (1 << 62, 1)}, "exceeds its storage"),
    ({"shape": (1 << 40,), "strides": (0,)}, "too many times"),
    ({"shape": (0, 1 << 40)}, "too many times"),
    ({"shape": (1 << 80,), "strides": (0,)}, "invalid shape"),
    ({"shape": (-1, 3)}, "invalid shape"),
    ({"strides": (-3, 1)}, "invalid shape"),
    ({"shape": (6,)}, "invalid shape"),
    ({"shape": 6}, "invalid shape"),
    ({"shape": (2.0, 3.0)}, "invalid shape"),
    ({"shape": (1,) * 65, "strides": (1,) * 65}, "invalid shape"),
    ({"offset": None}, "invalid shape"),
    ({"key": "1"}, "storage 1 has 0 bytes rather than 24"),
    ({"key": "../version"}, "0 bytes rather than 24"),
    ({"key": 0}, "an object that is not a storage"),
    ({"metadata": b"}K\0K\0s"}, "resolve_neg"),
  ],
)
def test_a_tensor_must_lie_in_its_storage(path, change, message):
  pack(path, tensor_opcodes(**change))
  assert message in refusal(path)


def test_a_record_may_not_claim_more_bytes_than_it_has(path):
  pack(path, tensor_opcodes(), data__0=bytes(20))
  assert "storage 0 has 20 bytes rather than 24" in refusal(path)
  code = opcodes("x" * 300)
  pack(path, code)
  size = len(PROTO + code + b".").to_bytes(4, "little") * 2
  whole = path.read_bytes()
  assert whole.count(size) == 2  # In the local header and in the directory.
  path.write_bytes(whole.replace(size, (1 << 27).to_bytes(4, "little") * 2))
  assert "data.pkl cannot be read (it is not at the offset" in refusal(path)


def test_every_cut_is_noticed(path):
  write(path, samples(np.float32))
  whole = path.read_bytes()
  for size in (*range(0, len(whole), 97), len(whole) - 1):
    path.write_bytes(whole[:size])
    message = refusal(path)
    assert ("cut short" if size else "is empty") in message
    assert "Download it again" in message


@pytest.mark.parametrize("deflated", [False, True])
def test_damage_is_noticed_or_harmless(path, deflated):
  if deflated:
    pack(path, tensor_opcodes(), zipfile.ZIP_DEFLATED)
  else:
    write(path, samples(np.float32))
  whole, rng = path.read_bytes(), random.Random(0)
  for _ in range(150):
    data = bytearray(whole)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    try:
      read_all(pth.read(path))
    except ValueError as error:
      assert str(path) in str(error)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1", "not a PyTorch file"),
    (pickle.dumps({}), "not a PyTorch file"),
    (PROTO + opcodes(0x1950A86A20F9469CFC6C) + b".", "before PyTorch 1.6"),
  ],
)
def test_other_files_are_refused(path, data, message):
  path.write_bytes(data)
  for read in (pth.read, pth.read_namespace):
    assert message in refusal(path, read)


def test_other_zips_are_refused(path):
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("a/b/data.pkl", PROTO + b"N.")
    file.writestr("data.pkl", PROTO + b"N.")
  assert "without a data.pkl" in refusal(path)
  pack(path, b"N", **{"constants.pkl": b"", "code/__torch__.py": b""})
  assert "TorchScript" in refusal(path)


def test_a_missing_file_is_named(path):
  with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
    pth.read(path)


def test_other_encodings_and_views_are_read(path):
  big_endian = np.arange(6, dtype=">f4").tobytes()
  pack(path, tensor_opcodes(), byteorder=b"big", data__0=big_endian)
  assert pth.read(path).read().tolist() == [[0, 1, 2], [3, 4, 5]]
  pack(path, tensor_opcodes(2, (2,), (3,)), zipfile.ZIP_DEFLATED)
  assert pth.read(path).read().tolist() == [2, 5]
  pack(path, tensor_opcodes(), zipfile.ZIP_BZIP2)
  assert "torch never uses" in refusal(path)
  pack(path, tensor_opcodes(1, (2, 2), (2, 1)))
  assert pth.read(path).read().tolist() == [[1, 2], [3, 4]]
  pack(path, tensor_opcodes(5, (2, 1, 3), (0, 1 << 62, 0)))
  assert pth.read(path).read().tolist() == [[[5] * 3]] * 2
