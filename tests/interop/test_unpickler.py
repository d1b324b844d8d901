"""Pickles in PyTorch files: no code runs and nothing exhausts memory."""

import copyreg
import pickle

import numpy as np
import pytest
from support.pth_files import (
  PROTO,
  call,
  opcodes,
  pack,
  refusal,
  tensor_opcodes,
)

from lumina_jax.interop import pth, storages, unpickler

# Functions that run code, functions that could lead to it, and look-alikes.
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
# Names of every kind that a file may use.
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


def function_id(unsafe) -> str:
  return ".".join(unsafe[:2])


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


@pytest.fixture
def mark(tmp_path):
  """A file that the code in a pickle would create."""
  mark = tmp_path / "it_ran"
  yield mark
  assert not mark.exists()


@pytest.mark.parametrize("unsafe", UNSAFE[:7], ids=function_id)
def test_payloads_would_run(tmp_path, unsafe):
  """The test below proves something only if they do."""
  module, name, *args = unsafe
  args = [x.format(mark=tmp_path / "it_ran") for x in args]
  pickle.loads(PROTO + call(module, name, *args) + b".")
  assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("unsafe", UNSAFE, ids=function_id)
def test_code_is_refused(path, mark, unsafe):
  module, name, *args = unsafe
  args = [x.format(mark=mark) if isinstance(x, str) else x for x in args]
  full_name = f"{module}.{name}".replace("__builtin__", "builtins")
  for form in ("REDUCE", "STACK_GLOBAL", "INST"):
    evil = call(module, name, *args, form=form)
    nested = (
      b"}(" + opcodes("w") + tensor_opcodes() + opcodes("v") + evil + b"u"
    )
    state = b"cargparse\nNamespace\n)\x81" + nested + b"b"
    for code, read in (
      (evil, pth.read),
      (nested, pth.read),
      (tensor_opcodes(metadata=evil), pth.read),
      (evil, pth.read_namespace),
      (state, pth.read_namespace),
    ):
      pack(path, code)
      with pytest.raises(unpickler.Unsafe) as error:
        read(path)
      for text in (str(path), f"it uses {full_name}. ", "torch.save({k: v"):
        assert text in str(error.value)


def test_a_chain_to_code_is_refused(path, mark):
  os = call("builtins", "__import__", "os")
  system = b"cbuiltins\ngetattr\n(" + os + opcodes("system") + b"tR"
  pack(path, system + b"(" + opcodes(f"touch {mark}") + b"tR")
  pickle.loads(PROTO + system + b".")
  assert "builtins.getattr" in refusal(path)
  assert "builtins.getattr" in refusal(path, pth.read_namespace)


def test_the_extension_registry_is_not_reached(path, mark):
  copyreg.add_extension("builtins", "eval", 240)
  try:
    code = b"\x82\xf0(" + opcodes(f"open({str(mark)!r}, 'w')") + b"tR"
    pickle.loads(PROTO + b"\x82\xf0.")  # From here on it is in a cache.
    pack(path, code)
    assert "extension registry" in refusal(path)
  finally:
    copyreg.remove_extension("builtins", "eval", 240)


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_cannot_be_changed(path, name):
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
def test_stand_ins_are_not_values(path, name):
  pack(path, b"c" + name.replace(" ", "\n").encode() + b"\n")
  assert "is refused: it holds a " in refusal(path)


def test_attributes_of_a_dict_are_dropped(path):
  items = b"ccollections\nOrderedDict\n)R" + opcodes("a") + b"K\1s"
  pack(path, items + opcodes({"items": 2, "_metadata": 3}) + b"b")
  assert list(pth.read(path).items()) == [("a", 1)]


@pytest.mark.parametrize(
  ("code", "message"),
  [
    (b"N" + b"r\xff\xff\xff\xff", "memo is larger than the pickle"),
    (opcodes("0") + b"Q", "an object that is not a storage"),
    (b"h\0", "cannot be read"),
    (b"0", "cannot be read"),
    (b"", "cannot be read"),
    (b"\xff", "cannot be read"),
    (b"]" * 100_000 + b"a" * 99_999, None),
    (b")" + b"2\x86" * 60, None),
  ],
)
def test_a_hostile_pickle_takes_no_memory(path, code, message):
  pack(path, code)
  if message:
    assert message in refusal(path)
  else:
    pth.read(path)


def test_a_huge_pickle_is_refused(path, monkeypatch):
  monkeypatch.setattr(storages, "MAX_PICKLE", 10)
  pack(path, tensor_opcodes())
  assert "far more than in a checkpoint" in refusal(path)


def test_a_plain_dict_is_read_as_a_namespace(path):
  ordered = b"ccollections\nOrderedDict\n)R" + opcodes("a") + b"K\1s"
  pack(path, b"}" + opcodes("b") + ordered + b"s")
  values = pth.read_namespace(path)
  assert values == {"b": {"a": 1}}
  pth.write_namespace(path, values)
  assert pth.read_namespace(path) == values
  assert "argparse.Namespace" in refusal(path)  # Not as a state dict.


@pytest.mark.parametrize(
  ("code", "message"),
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
def test_a_namespace_holds_plain_values_only(path, code, message):
  pack(path, code)
  assert message in refusal(path, pth.read_namespace)


@pytest.mark.parametrize(
  "value", [np.float64(1), open, [np.zeros(2)], {1: print}]
)
def test_only_plain_values_are_written(path, value):
  with pytest.raises(unpickler.Unsafe, match=r"weights\.pth: odd is refused"):
    pth.write_namespace(path, {"odd": value})
  assert not path.exists()
