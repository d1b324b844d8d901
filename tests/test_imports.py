"""The house: imports point one way, and rooms keep to themselves.

Lazy imports and those for types only count like any other.
"""

import ast
import pathlib
import subprocess
import sys

import pytest
from support.configs import ROOT

# Rooms by level. A module imports lower levels, and rooms of its own level one
# way only.
LEVELS = (
  ("files", "tokens", "packing", "flow"),
  ("attention", "backbone"),
  ("media", "parallel", "encoders", "interop"),
  ("data_pipelines", "model"),
  ("sampling",),
  ("pretrained",),
  ("training",),
  ("runs",),
  ("pipeline",),
  ("evaluation", "planning"),
  ("commands",),
  ("train", "evaluate", "convert", "plan", "encode", "infer", "sample", "cli"),
)
LEVEL = {room: n for n, rooms in enumerate(LEVELS) for room in rooms}
TOP = {"__init__", "tokens", "packing", "pipeline", *LEVELS[-1]}
# Of lumina_jax, what a data worker loads.
FOR_DATA = {"files", "tokens", "packing", "media"}


def modules() -> dict[str, pathlib.Path]:
  found = {}
  for package in ("lumina_jax", "data_pipelines"):
    for path in (ROOT / package).rglob("*.py"):
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
      found[name.removesuffix(".__init__")] = path
  return found


MODULES = modules()


def imports(name: str) -> set[str]:
  """Modules of ours that a module names, wherever in its text."""
  found = set()
  for node in ast.walk(ast.parse(MODULES[name].read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      full = {f"{node.module}.{alias.name}" for alias in node.names}
      inside = full & MODULES.keys()
      found |= inside or {node.module}
  return {module for module in found & MODULES.keys() if module != name}


IMPORTS = {name: imports(name) for name in MODULES}


def room(name: str) -> str:
  package, *rest = name.split(".")
  if package == "data_pipelines":
    return package
  return rest[0] if rest else "__init__"


def test_the_top_level_holds_the_contract_the_pipeline_and_commands():
  files = {path.stem for path in (ROOT / "lumina_jax").glob("*.py")}
  assert files == TOP


def test_every_room_has_a_level():
  rooms = {room(name) for name in MODULES} - {"__init__"}
  assert rooms == LEVEL.keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_one_way(name):
  if room(name) == "__init__":
    return  # It names public things and imports none of them.
  mine = room(name)
  upward = {
    other
    for other in IMPORTS[name]
    if room(other) not in (mine, "__init__")
    and LEVEL[room(other)] > LEVEL[mine]
  }
  assert not upward
  if mine == "data_pipelines":
    assert {room(other) for other in IMPORTS[name]} <= {*FOR_DATA, mine}


def test_rooms_of_one_level_import_each_other_one_way():
  pairs = {
    (room(name), room(other)) for name in MODULES for other in IMPORTS[name]
  }
  both = {(a, b) for a, b in pairs if a != b and (b, a) in pairs}
  assert not both


def test_no_circle_of_any_kind():
  done, path = set(), []

  def visit(name):
    if name in path:
      pytest.fail(" -> ".join([*path[path.index(name) :], name]))
    if name in done:
      return
    path.append(name)
    for other in sorted(IMPORTS[name]):
      # A package lists what lies in it; that is no circle.
      if not (MODULES[name].stem == "__init__" and other.startswith(name)):
        visit(other)
    path.pop()
    done.add(name)

  for name in sorted(MODULES):
    visit(name)


def test_only_media_know_pictures():
  for name, path in MODULES.items():
    text = path.read_text()
    if room(name) != "media":
      assert "import PIL" not in text and "from PIL" not in text, name


def test_walking_finds_what_it_looks_for(tmp_path):
  text = (
    "from typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n  from lumina_jax.train import train\n"
    "def f():\n  from lumina_jax import pipeline\n"
  )
  path = tmp_path / "x.py"
  path.write_text(text)
  MODULES["lumina_jax.flow.x"] = path
  try:
    found = imports("lumina_jax.flow.x")
  finally:
    del MODULES["lumina_jax.flow.x"]
  assert found == {"lumina_jax.train", "lumina_jax.pipeline"}


def test_above_a_clone_the_package_is_found(tmp_path):
  (tmp_path / "lumina_jax").mkdir()  # A clone holds no __init__.py itself.
  command = [sys.executable, "-c", "import lumina_jax as l; l.LuminaPipeline"]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
