"""Benchmarks import; some run at their smallest sizes.

tests/parity/test_benchmarks_torch.py tests the comparison with PyTorch.
"""

import ast
import importlib
import inspect
import types

import pytest
from support.benchmarks import ATTENTION, TRAIN_STEP, table
from support.configs import ROOT

pytestmark = pytest.mark.e2e
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_imports(name):
  if name.startswith("torch_") or name == "check_crops":
    pytest.importorskip("torch")
  importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_benchmarks_call_what_exists_with_arguments_that_it_takes(name):
  if name.startswith("torch_") or name == "check_crops":
    pytest.importorskip("torch")
  module = importlib.import_module(f"benchmarks.{name}")
  tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute | ast.Name):
      resolve(module, node)
    if isinstance(node, ast.Call) and ours(resolve(module, node.func)):
      if any(isinstance(x, ast.Starred) for x in node.args):
        continue
      keywords = {k.arg: None for k in node.keywords}
      if None in keywords:  # **unpacked
        continue
      try:
        inspect.signature(resolve(module, node.func)).bind(
          *node.args, **keywords
        )
      except TypeError as error:
        pytest.fail(f"{ast.unparse(node)}: {error}")


def resolve(module, node):
  """What a name, or an attribute of a module, stands for; None = unknown."""
  if isinstance(node, ast.Name):
    return getattr(module, node.id, None)
  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
    owner = getattr(module, node.value.id, None)
    if isinstance(owner, types.ModuleType):
      assert hasattr(owner, node.attr), ast.unparse(node)
      return getattr(owner, node.attr)
  return None


def ours(function):
  package = (getattr(function, "__module__", None) or "").split(".")[0]
  return callable(function) and package in (
    "lumina_jax",
    "data_pipelines",
    "benchmarks",
    "configs",
  )


def test_attention_prints_a_ratio_for_every_size():
  rows, _ = table(*ATTENTION, "--notorch")
  assert [row["rows x tokens"] for row in rows] == ["1 x 64"] * 2 + [
    "1 x 128"
  ] * 2
  assert [row["pass"] for row in rows] == ["forward", "and backward"] * 2
  assert all(float(row["dense / chunked"]) > 0 for row in rows)
  assert all(float(row["dense, temporary MB"]) > 0 for row in rows)


def test_attention_with_the_options_of_an_accelerator():
  arguments = [
    "--kernels=auto,chunked",
    "--head_dims=8,16",
    "--dtype=bfloat16",
    "--row_tokens=128",
    "--calls=2",
  ]
  rows, _ = table(*ATTENTION, "--notorch", *arguments)
  assert [row["head_dim"] for row in rows] == ["8"] * 4 + ["16"] * 4
  assert {row["rows x tokens"] for row in rows} == {"2 x 64", "1 x 128"}
  assert all(float(row["chunked / auto"]) > 0 for row in rows)


def test_train_step_without_torch_has_times_and_no_ratio():
  rows, text = table(*TRAIN_STEP, "--notorch", "--remat=full", "--tokens=16")
  assert "without PyTorch" in text
  assert [row["rows x tokens"] for row in rows] == ["1 x 16"]
  assert all(float(row["ours, s/step"]) > 0 for row in rows)
  assert {row["remat"] for row in rows} == {"full"}
  assert {row["torch / ours"] for row in rows} == {"-"}
