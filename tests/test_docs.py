"""What a page says in Python runs, and makes the pictures that it promises.

The blocks of docs/from_diffusers.md that `<!-- run -->` stands before run one
after another with the same names, on a tiny random pipeline of diffusers.
"""

import re

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip(
  "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
)
pytest.importorskip("diffusers", reason="diffusers is an oracle")
from support import peer  # noqa: E402

pytestmark = pytest.mark.parity

PAGE = "docs/from_diffusers.md"
SIDE, STEPS = 64, 5  # What the tiny network was trained on; a few steps do.
HUB = "Alpha-VLLM/Lumina-Next-SFT-diffusers"
RUN = re.compile(r"<!-- run -->\n```python\n(.*?)^```", re.M | re.S)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\[[^]]*\]\(([^)#]+)")
CODE = re.compile(r"`((?:tests|lumina_jax|configs)/[\w/]+\.py)`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tiny")
  peer.make(path)
  return path


@pytest.fixture(scope="module")
def page(root):
  return (root / PAGE).read_text()


@pytest.fixture(scope="module")
def ran(page, folder, tmp_path_factory):
  """What the names stand for after all blocks, and where they were run."""
  here = tmp_path_factory.mktemp("here")
  names: dict = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(here)
    for number, block in enumerate(RUN.findall(page)):
      code = block.replace(HUB, str(folder)).replace("1024", str(SIDE))
      code = code.replace("steps=30", f"steps={STEPS}")
      exec(compile(code, f"{PAGE}, block {number}", "exec"), names)
  return names, here


def test_most_blocks_run_and_all_are_python(page):
  blocks = PYTHON.findall(page)
  assert len(RUN.findall(page)) >= len(blocks) - 1  # What stood there before.
  for block in blocks:
    compile(block, PAGE, "exec")


@pytest.mark.slow
def test_the_picture_is_saved(ran):
  with Image.open(ran[1] / "snowman.png") as image:
    assert image.size == (SIDE, SIDE)
    assert np.ptp(np.asarray(image)) > 50


@pytest.mark.slow
def test_the_same_pixels_as_theirs(ran, folder):
  theirs = peer.load(folder)(
    "a snowman in a red scarf",
    generator=torch.Generator().manual_seed(0),
    num_inference_steps=STEPS,
    output_type="np",
  ).images[0]
  own = np.asarray(ran[0]["image"]).astype(int)
  assert np.ptp(own) > 100, "a flat picture proves nothing"
  assert np.abs(own - np.round(255 * theirs)).max() <= 1


@pytest.mark.slow
def test_features_stand_for_their_prompt(ran):
  with Image.open(ran[1] / "snowman.png") as image:
    np.testing.assert_array_equal(image, ran[0]["again"])


@pytest.mark.parametrize(
  "name", [PAGE, "docs/licences.md", "docs/pipelines.md"]
)
def test_files_that_a_page_names_are_there(root, name):
  text = (root / name).read_text()
  links = [x for x in LINK.findall(text) if "://" not in x]
  named = [root / x for x in CODE.findall(text)]
  paths = named + [(root / name).parent / link for link in links]
  assert [str(path) for path in paths if not path.exists()] == []
