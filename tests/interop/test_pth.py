"""PyTorch files: torch reads ours, we read torch's, and nothing is run."""

import argparse
import collections
import copyreg
import pickle
import random
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from lumina_jax.interop import pth, storages

DTYPES = [
  np.float64,
  np.float32,
  np.float16,
  ml_dtypes.bfloat16,
  np.int64,
  np.int32,
  np.bool_,
]
PROTO = b"\x80\2"
# Things that run code, things that could lead to it, and look-alikes.
UNSAFE = [
  ("posix", "system", "touch {mark}"),
  ("os", "system", "touch {mark}"),
  ("subprocess", "getoutput", "touch {mark}"),
  ("builtins", "eval", "open('{mark}', 'w')"),
  ("__builtin__", "eval", "open('{mark}', 'w')"),
  ("builtins", "exec", "open('{mark}', 'w')"),
  ("builtins", "open", "{mark}", "w"),
  ("builtins", "getattr", "", "join"),
  ("builtins", "__import__", "os"),
  ("builtins", "bytearray", 1 << 40),
  ("copyreg", "_reconstructor"),
  ("functools", "partial"),
  ("numpy", "memmap", "{mark}", "uint8", "w+", 0, 1),
  ("torch", "load", "{mark}"),
  ("torch.hub", "load", "{mark}"),
  ("torch.storage", "_load_from_bytes", "{mark}"),
  ("torch._utils", "eval", "open('{mark}', 'w')"),
  ("torch._utils", "_rebuild_tensor_v2.__call__.__globals__"),
  ("torch", "FloatStorage.__init__"),
  ("torch", "FloatStorage2"),
  ("torch_utils", "_rebuild_tensor_v2"),
  ("collections", "OrderedDict.__init__"),
  ("argparse", "ArgumentParser"),
  ("argparse", "Namespace.__init__.__globals__"),
  ("lumina_jax.interop.pth", "Writer", "{mark}"),
]
# All kinds of names that a file may hold.
STAND_INS = [
  "torch._utils _rebuild_tensor_v2",
  "torch._utils _rebuild_parameter",
  "torch FloatStorage",
  "torch.storage UntypedStorage",
  "torch Size",
  "torch device",
  "torch float32",
  "collections OrderedDict",
  "argparse Namespace",
  "builtins dict",
  "builtins int",
]


@pytest.fixture
def torch():
  return pytest.importorskip(
    "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
  )


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


@pytest.fixture
def mark(tmp_path):
  """A file that the code in a pickle creates; it must not."""
  mark = tmp_path / "it_ran"
  yield mark
  assert not mark.exists()


def opcodes(value):
  return pickle.dumps(value, 2)[2:-1]


def call(module, name, *args, form="REDUCE"):
  """The opcodes of a call of something that need not exist here."""
  values = b"".join(opcodes(x) for x in args)
  match form:
    case "REDUCE":
      return f"c{module}\n{name}\n".encode() + b"(" + values + b"tR"
    case "STACK_GLOBAL":
      return opcodes(module) + opcodes(name) + b"\x93(" + values + b"tR"
    case "INST":
      return b"(" + values + f"i{module}\n{name}\n".encode()


def tensor_opcodes(
  offset=0, shape=(2, 3), strides=(3, 1), key="0", metadata=b"N"
):
  """A tensor in a storage of six float32."""
  return b"".join(
    [
      b"ctorch._utils\n_rebuild_tensor_v2\n((",
      opcodes("storage"),
      b"ctorch\nFloatStorage\n",
      *map(opcodes, (key, "cuda:0", 6)),
      b"tQ",
      *map(opcodes, (offset, shape, strides, False)),
      b"ccollections\nOrderedDict\n)R",
      metadata,
      b"tR",
    ]
  )


def pack(path, code, compression=zipfile.ZIP_STORED, **records):
  """Writes a file by hand: a pickle of opcodes, six numbers, other records."""
  records = {
    "data.pkl": PROTO + code + b".",
    "data/0": np.arange(6, dtype="<f4").tobytes(),
    "version": b"3\n",
  } | {name.replace("__", "/"): data for name, data in records.items()}
  with zipfile.ZipFile(path, "w", compression) as file:
    for name, data in records.items():
      file.writestr(f"by_hand/{name}", data)


def samples(dtype):
  rng = np.random.default_rng(0)
  return {
    "matrix": (rng.normal(size=(3, 5)) * 3).astype(dtype),
    "scalar": np.array(1, dtype),
    "empty": np.zeros((0, 4), dtype),
    "transposed": (rng.normal(size=(4, 3)) * 3).astype(dtype).T,
    "reversed": np.ones((1, 2), dtype)[::-1],
    "é.0": np.zeros((2, 1, 2), dtype),
  }


def write(path, arrays):
  with pth.Writer(path) as file:
    for name, array in arrays.items():
      file.add(name, array)


def assert_same(found, expected):
  assert found.dtype == expected.dtype
  assert found.shape == expected.shape
  assert found.tobytes() == expected.tobytes()


def read_all(value):
  """Reads every tensor in a value."""
  if isinstance(value, pth.Tensor):
    return value.read()
  if isinstance(value, dict):
    return {k: read_all(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(map(read_all, value))
  return value


def refusal(path, read=pth.read):
  """What is said of a file that is refused."""
  with pytest.raises(ValueError) as error:
    read_all(read(path))
  assert str(path) in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_it_writes(path, dtype):
  arrays = samples(dtype)
  write(path, arrays)
  found = pth.read(path)
  assert list(found) == list(arrays)
  for name, lazy in found.items():
    assert isinstance(lazy, pth.Tensor)
    assert (lazy.shape, lazy.dtype) == (arrays[name].shape, dtype)
    array = lazy.read()
    assert_same(array, arrays[name])
    assert array.flags.c_contiguous
    array[...] = 0  # It is the caller's.
    assert_same(lazy.read(), arrays[name])


def test_a_state_dict_may_be_empty(path):
  write(path, {})
  assert pth.read(path) == {}


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
  for name, lazy in pth.read(path).items():
    assert_same(lazy.read(), arrays[name])


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


def test_the_writer_refuses_what_it_cannot_write(path):
  with pth.Writer(path) as file:
    file.add("a", np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"weights\.pth has a a already"):
      file.add("a", np.zeros(2, np.float32))
    for dtype in (np.complex64, ">f4", "U3", object):
      with pytest.raises(ValueError, match=r"b is of type .* convert it to"):
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


@pytest.mark.parametrize("unsafe", UNSAFE[:7], ids=lambda x: ".".join(x[:2]))
def test_payloads_would_run(tmp_path, unsafe):
  """The refusals below prove something only if it is so."""
  module, name, *args = unsafe
  args = [x.format(mark=tmp_path / "it_ran") for x in args]
  pickle.loads(PROTO + call(module, name, *args) + b".")
  assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("form", ["REDUCE", "STACK_GLOBAL", "INST"])
@pytest.mark.parametrize("unsafe", UNSAFE, ids=lambda x: ".".join(x[:2]))
def test_code_is_refused(path, mark, unsafe, form):
  module, name, *args = unsafe
  args = [x.format(mark=mark) if isinstance(x, str) else x for x in args]
  evil = call(module, name, *args, form=form)
  hidden = b"}(" + opcodes("w") + tensor_opcodes() + opcodes("v") + evil + b"u"
  state = b"cargparse\nNamespace\n)\x81" + hidden + b"b"
  name = f"{module}.{name}".replace("__builtin__", "builtins")
  for code, read in (
    (evil, pth.read),
    (hidden, pth.read),
    (tensor_opcodes(metadata=evil), pth.read),
    (evil, pth.read_namespace),
    (state, pth.read_namespace),
  ):
    pack(path, code)
    with pytest.raises(pth.Unsafe) as error:
      read(path)
    assert str(path) in str(error.value)
    assert f"asks for {name}," in str(error.value)
    assert "torch.save({k: v" in str(error.value)
    assert "safetensors" in str(error.value)


def test_a_chain_to_code_is_refused(path, mark):
  os = call("builtins", "__import__", "os")
  system = b"cbuiltins\ngetattr\n(" + os + opcodes("system") + b"tR"
  pack(path, system + b"(" + opcodes(f"touch {mark}") + b"tR")
  pickle.loads(PROTO + system + b".")
  assert "builtins.getattr" in refusal(path)
  assert "builtins.getattr" in refusal(path, pth.read_namespace)


def test_what_the_process_has_registered_is_not_reached(path, mark):
  copyreg.add_extension("builtins", "eval", 240)
  try:
    code = b"\x82\xf0(" + opcodes(f"open({str(mark)!r}, 'w')") + b"tR"
    pickle.loads(PROTO + b"\x82\xf0.")  # From here on it is in a cache.
    pack(path, code)
    assert "extension registry" in refusal(path)
  finally:
    copyreg.remove_extension("builtins", "eval", 240)


def test_only_a_namespace_is_read_as_one(path):
  pth.write_namespace(path, {"a": 1})
  assert "argparse.Namespace" in refusal(path)


@pytest.mark.parametrize("name", STAND_INS)
def test_what_stands_in_cannot_be_changed(path, name):
  good = path.with_name("good.pth")
  pth.write_namespace(good, {"a": {1, 2}})
  pack(path, tensor_opcodes())
  for state in (
    {"__call__": 1},
    (None, {"__call__": 1, "_call": 2, "dtype": 3}),
  ):
    evil = path.with_name("evil.pth")
    global_ = b"c" + name.replace(" ", "\n").encode() + b"\n"
    pack(evil, global_ + opcodes(state) + b"b")
    refusal(evil, pth.read_namespace)
  assert pth.read_namespace(good) == {"a": {1, 2}}
  assert pth.read(path).read()[1, 2] == 5


@pytest.mark.parametrize("name", STAND_INS[:6])
def test_what_stands_in_is_no_value(path, name):
  pack(path, b"c" + name.replace(" ", "\n").encode() + b"\n")
  assert "is refused: it holds a " in refusal(path)


def test_attributes_of_a_dict_are_dropped(path):
  items = b"ccollections\nOrderedDict\n)R" + opcodes("a") + b"K\1s"
  pack(path, items + opcodes({"items": 2, "_metadata": 3}) + b"b")
  assert list(pth.read(path).items()) == [("a", 1)]


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"offset": 1}, "exceeds its storage"),
    ({"shape": (3, 3)}, "exceeds its storage"),
    ({"strides": (3, 2)}, "exceeds its storage"),
    ({"strides": (1 << 62, 1)}, "exceeds its storage"),
    ({"shape": (1 << 40,), "strides": (0,)}, "too often"),
    ({"shape": (0, 1 << 40)}, "too often"),
    ({"shape": (1 << 80,), "strides": (0,)}, "no proper shape"),
    ({"shape": (-1, 3)}, "no proper shape"),
    ({"strides": (-3, 1)}, "no proper shape"),
    ({"shape": (6,)}, "no proper shape"),
    ({"shape": 6}, "no proper shape"),
    ({"shape": (2.0, 3.0)}, "no proper shape"),
    ({"shape": (1,) * 65, "strides": (1,) * 65}, "no proper shape"),
    ({"offset": None}, "no proper shape"),
    ({"key": "1"}, "storage 1 has 0 bytes rather than 24"),
    ({"key": "../version"}, "0 bytes rather than 24"),
    ({"key": 0}, "something other than a storage"),
    ({"metadata": b"}K\0K\0s"}, "resolve_neg"),
  ],
)
def test_a_tensor_must_lie_in_its_storage(path, change, said):
  pack(path, tensor_opcodes(**change))
  assert said in refusal(path)


@pytest.mark.parametrize(
  ("code", "said"),
  [
    (b"N" + b"r\xff\xff\xff\xff", "more objects than it can hold"),
    (opcodes("0") + b"Q", "something other than a storage"),
    (b"h\0", "cannot be read"),
    (b"0", "cannot be read"),
    (b"", "cannot be read"),
    (b"\xff", "cannot be read"),
    (b"]" * 100_000 + b"a" * 99_999, None),
    (b")" + b"2\x86" * 60, None),
  ],
)
def test_a_hostile_pickle_takes_no_memory(path, code, said):
  pack(path, code)
  if said:
    assert said in refusal(path)
  else:
    pth.read(path)


def test_a_record_may_not_claim_more_than_there_is(path):
  pack(path, tensor_opcodes(), data__0=bytes(20))
  assert "storage 0 has 20 bytes rather than 24" in refusal(path)
  code = opcodes("x" * 300)
  pack(path, code)
  size = len(PROTO + code + b".").to_bytes(4, "little") * 2
  whole = path.read_bytes()
  assert whole.count(size) == 2  # Before the record and in the list of all.
  path.write_bytes(whole.replace(size, (1 << 27).to_bytes(4, "little") * 2))
  assert "data.pkl cannot be read (it is not where" in refusal(path)


def test_a_huge_pickle_is_refused(path, monkeypatch):
  monkeypatch.setattr(storages, "MAX_PICKLE", 10)
  pack(path, tensor_opcodes())
  assert "far more than a checkpoint's" in refusal(path)


def test_every_cut_is_noticed(path):
  write(path, samples(np.float32))
  whole = path.read_bytes()
  for size in (*range(0, len(whole), 97), len(whole) - 1):
    path.write_bytes(whole[:size])
    said = refusal(path)
    assert "is empty" in said if not size else "cut short" in said
    assert "Fetch it again" in said


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
  ("data", "said"),
  [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1", "no PyTorch file"),
    (pickle.dumps({}), "no PyTorch file"),
    (PROTO + opcodes(0x1950A86A20F9469CFC6C) + b".", "before PyTorch 1.6"),
  ],
)
def test_other_files_are_told_apart(path, data, said):
  path.write_bytes(data)
  for read in (pth.read, pth.read_namespace):
    assert said in refusal(path, read)


def test_a_missing_file_is_missing(path):
  with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
    pth.read(path)


def test_other_zips_are_told_apart(path):
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("a/b/data.pkl", PROTO + b"N.")
    file.writestr("data.pkl", PROTO + b"N.")
  assert r"without a data.pkl" in refusal(path)
  pack(path, b"N", **{"constants.pkl": b"", "code/__torch__.py": b""})
  assert "TorchScript" in refusal(path)


def test_big_endian_numbers_are_turned(path):
  numbers = np.arange(6, dtype=">f4").tobytes()
  pack(path, tensor_opcodes(), byteorder=b"big", data__0=numbers)
  assert pth.read(path).read().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_compressed_records_are_read(path):
  pack(path, tensor_opcodes(2, (2,), (3,)), zipfile.ZIP_DEFLATED)
  assert pth.read(path).read().tolist() == [2, 5]
  pack(path, tensor_opcodes(), zipfile.ZIP_BZIP2)
  assert "torch never uses" in refusal(path)


def test_views_are_read(path):
  pack(path, tensor_opcodes(1, (2, 2), (2, 1)))
  assert pth.read(path).read().tolist() == [[1, 2], [3, 4]]
  pack(path, tensor_opcodes(5, (2, 1, 3), (0, 1 << 62, 0)))
  assert pth.read(path).read().tolist() == [[[5] * 3]] * 2


NAMESPACE = {
  "model": "NextDiT_2B_GQA_patch2",
  "lr": 1e-4,
  "steps": 1 << 40,
  "debug": False,
  "none": None,
  "sizes": [1, (2, 3), {4, 5}],
  "nested": {"a": {"b": []}, 1: {"é"}},
}


def test_a_namespace_reads_as_it_was_written(path):
  pth.write_namespace(path, NAMESPACE)
  assert pth.read_namespace(path) == NAMESPACE
  pth.write_namespace(path, {})
  assert pth.read_namespace(path) == {}


def test_a_plain_dict_will_do_as_a_namespace(path):
  ordered = b"ccollections\nOrderedDict\n)R" + opcodes("a") + b"K\1s"
  pack(path, b"}" + opcodes("b") + ordered + b"s")
  values = pth.read_namespace(path)
  assert values == {"b": {"a": 1}}
  pth.write_namespace(path, values)
  assert pth.read_namespace(path) == values


@pytest.mark.parametrize(
  ("code", "said"),
  [
    (b"]", "no argparse.Namespace"),
    (opcodes({1: 2}), "no argparse.Namespace"),
    (
      b"}" + opcodes("w") + tensor_opcodes() + b"s",
      "w is refused: it holds a T",
    ),
    (
      b"}" + opcodes("n") + b"cargparse\nNamespace\n)\x81s",
      "n is refused: it holds a Namespace",
    ),
  ],
)
def test_a_namespace_holds_plain_values(path, code, said):
  pack(path, code)
  assert said in refusal(path, pth.read_namespace)


@pytest.mark.parametrize(
  "value", [np.float64(1), open, [np.zeros(2)], {1: print}]
)
def test_only_plain_values_are_written(path, value):
  with pytest.raises(pth.Unsafe, match=r"weights\.pth: odd is refused"):
    pth.write_namespace(path, {"odd": value})
  assert not path.exists()


@pytest.mark.parity
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_reads_ours(torch, path, dtype, mmap):
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


@pytest.mark.parity
def test_torch_reads_our_namespace(torch, path):
  pth.write_namespace(path, NAMESPACE)
  expected = argparse.Namespace(**NAMESPACE)
  assert torch.load(path, weights_only=False) == expected
  with torch.serialization.safe_globals([argparse.Namespace]):
    assert torch.load(path, weights_only=True) == expected


@pytest.mark.parity
def test_reads_torch_namespaces(torch, path):
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


@pytest.mark.parity
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_torch_tensors(torch, path, protocol):
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


@pytest.mark.parity
def test_reads_checkpoints_of_torch(torch, path, monkeypatch):
  model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  model[0].weight.note = 1  # A parameter of attributes is pickled otherwise.
  state, moment = model.state_dict(), torch.randn(2, 3)
  size, device = torch.Size([1, 2]), torch.device("cuda", 1)
  checkpoint = {
    "state_dict": state,
    "parameters": list(model.parameters()),
    "optimizer_states": [{"state": {0: {"exp_avg": moment}}, "lr": 1e-4}],
    "milestones": collections.Counter([3, 5]),
    "epoch": 3,
    "hyper_parameters": {"size": size, "on": device, "type": torch.float32},
    "seen": {"a", "b"},
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
    "seen": {"a", "b"},
  }
  assert list(weights) == list(state)
  for name, x in state.items():
    assert_same(weights[name], x.numpy())
  for array, x in zip(parameters, model.parameters(), strict=True):
    assert_same(array, x.detach().numpy())
  assert_same(optimizer["state"][0]["exp_avg"], moment.numpy())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_names_what_it_does_not_read_of_torch(torch, path):
  for value, said in (
    (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    (torch.zeros(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    (torch.zeros(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
    (torch.zeros(2).untyped_storage(), "holds a Storage"),
    (torch.tensor([1j]).conj().imag, "resolve_neg"),
    (np.float64(1), "scalar"),
  ):
    torch.save({"x": value}, path)
    assert said in refusal(path)
  torch.save({}, path, _use_new_zipfile_serialization=False)
  assert "before PyTorch 1.6" in refusal(path)
  torch.jit.script(torch.nn.Linear(1, 1)).save(path)
  assert "TorchScript" in refusal(path)


@pytest.mark.parity
def test_checksums_may_be_left_out(torch, path):
  torch.serialization.set_crc32_options(False)
  try:
    torch.save({"x": torch.ones(3)}, path)
  finally:
    torch.serialization.set_crc32_options(True)
  assert pth.read(path)["x"].read().tolist() == [1, 1, 1]
