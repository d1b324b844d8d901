"""The notebook runs from top to bottom and is stored without outputs."""

import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

NOTEBOOK = "notebooks/lumina_jax.ipynb"
# IPython defines `display` in every notebook; here it writes files.
DISPLAY = """
import os as _os
_displayed = []


def display(image):
  _displayed.append(image)
  name = f"displayed_{len(_displayed):02d}.png"
  image.save(_os.path.join(_os.environ["LUMINA_NOTEBOOK_OUTPUT"], name))
"""


@pytest.fixture(scope="module")
def notebook(root):
  return json.loads((root / NOTEBOOK).read_text())


def code_cells(notebook, tagged):
  return [
    "".join(cell["source"])
    for cell in notebook["cells"]
    if cell["cell_type"] == "code"
    and ("install" in cell["metadata"].get("tags", ())) == tagged
  ]


def test_structure(notebook):
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)
  assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
  for cell in notebook["cells"]:
    assert isinstance(cell["metadata"], dict)
    assert all(isinstance(line, str) for line in cell["source"])
    match cell["cell_type"]:
      case "code":
        assert cell["outputs"] == [] and cell["execution_count"] is None
      case "markdown":
        assert cell.keys() == {"cell_type", "id", "metadata", "source"}
      case kind:
        pytest.fail(f"a cell of type {kind}")


def test_text_precedes_each_code_cell(notebook):
  kinds = [cell["cell_type"] for cell in notebook["cells"]]
  assert kinds[0] == "markdown"
  for above, kind in itertools.pairwise(kinds):
    assert kind == "markdown" or above == "markdown"


def test_installation_keeps_jax(notebook):
  (cell,) = code_cells(notebook, tagged=True)
  installed = re.findall(r"pip install (.*)", cell)
  assert installed == ["--quiet ."]
  assert "==" not in cell
  assert "jax[" not in cell


def test_no_other_cell_needs_ipython(notebook):
  for cell in code_cells(notebook, tagged=False):
    compile(cell, NOTEBOOK, "exec")


@pytest.mark.e2e
def test_all_cells_run(notebook, root, tmp_path):
  code = "\n".join([DISPLAY, *code_cells(notebook, tagged=False)])
  changes = dict(
    LUMINA_NOTEBOOK_STEPS="4", LUMINA_NOTEBOOK_OUTPUT=str(tmp_path)
  )
  ran = subprocess.run(
    [sys.executable, "-c", code],
    cwd=root,
    env=os.environ | changes,
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stderr[-3000:]
  assert "the same image: True" in ran.stdout
  assert "CHECKPOINT is empty" in ran.stdout
  images = sorted(tmp_path.glob("displayed_*.png"))
  assert len(images) == code.count("\ndisplay(")
  for path in images:
    with Image.open(path) as image:
      assert np.ptp(np.asarray(image.convert("L"))) > 50, f"{path} is blank"
  for name in (
    "digits/report.html",
    "digits/metrics.jsonl",
    "digits/samples/step_000004.png",
    "export/model.safetensors",
    "larger/config.json",
  ):
    assert (tmp_path / name).stat().st_size > 0
