"""The Python of pages runs.

A page marks a block to run by the comment `<!-- run -->` above it. Blocks of a
page run one after another with the same names.
"""

import numpy as np
import pytest
from PIL import Image
from support.pages import PAGES, Page

# Pages whose code runs on a tiny pipeline of diffusers in place of this one.
HUB = "Alpha-VLLM/Lumina-Next-SFT-diffusers"
SIDE, STEPS = 64, 5  # Of the tiny pipeline; a few steps do.
DIFFUSERS = ("docs/from_diffusers.md", "docs/pipelines.md")


def run(page: Page, blocks: list[str], **names) -> dict:
  """Runs blocks one after another with the same names, and returns these."""
  for number, block in enumerate(blocks):
    exec(compile(block, f"{page.path}, block {number}", "exec"), names)
  return names


@pytest.mark.e2e
def test_readme_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  page = PAGES["README.md"]
  run(page, page.python)
  with Image.open("canvas.png") as image:
    assert image.size == (24, 8)


@pytest.mark.e2e
def test_sampling_runs():
  page = PAGES["docs/sampling.md"]
  images = run(page, page.runnable)["out"].images
  assert [image.size for image in images] == [(24, 8), (8, 8)]


@pytest.mark.parametrize("name", ["docs/training.md", "docs/data.md"])
def test_settings_make_a_config(name):
  from configs import photographs
  from lumina_jax.files import schema
  from lumina_jax.training import run_config

  config = photographs.get_config()
  config = schema.complete(run_config.RunConfig, config).unlock()
  page = PAGES[name]
  run_config.parse(run(page, page.runnable, config=config)["config"])


@pytest.mark.e2e
def test_weights_run(tmp_path, monkeypatch):
  from support.families import FAMILIES, random_params

  import lumina_jax

  monkeypatch.chdir(tmp_path)
  cfg = FAMILIES["next_text"]
  lumina_jax.save_pytorch(random_params(cfg), cfg, "Lumina-Next-SFT")
  names = dict(
    small=np.zeros((4, 8, cfg.channels), np.float32),
    large=np.zeros((16, 8, cfg.channels), np.float32),
    features=np.ones((2, 3, cfg.text_width), np.float32),
  )
  page = PAGES["docs/weights.md"]
  v = run(page, page.runnable, **names)["v"]
  assert [x.shape for x in v] == [names["small"].shape, names["large"].shape]
  assert (tmp_path / "for_diffusers" / "config.json").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny random pipeline of diffusers."""
  reason = "torch is an oracle: pip install -r requirements-parity.txt"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("diffusers", reason=reason)
  from support import peer

  path = tmp_path_factory.mktemp("tiny")
  peer.make(path)
  return path


@pytest.fixture(scope="module", params=DIFFUSERS)
def ran(request, folder, tmp_path_factory):
  """A page, the names after all of its blocks, and where they ran."""
  page, here = PAGES[request.param], tmp_path_factory.mktemp("here")
  blocks = [
    block.replace(HUB, str(folder))
    .replace("1024", str(SIDE))
    .replace("steps=30", f"steps={STEPS}")
    for block in page.runnable
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(here)
    return request.param, run(page, blocks), here


@pytest.mark.e2e
@pytest.mark.parity
def test_code_for_diffusers_runs(ran, folder):
  name, names, here = ran
  (file,) = here.glob("*.png")
  with Image.open(file) as image:
    assert image.size == (SIDE, SIDE)
    assert np.ptp(np.asarray(image)) > 50
    if "again" in names:  # Features stand for their prompt.
      np.testing.assert_array_equal(image, names["again"])
  if name != DIFFUSERS[0]:
    return
  import torch
  from support import peer

  theirs = peer.load(folder)(
    "a snowman in a red scarf",
    generator=torch.Generator().manual_seed(0),
    num_inference_steps=STEPS,
    output_type="np",
  ).images[0]
  own = np.asarray(names["image"]).astype(int)
  assert np.ptp(own) > 100, "a flat picture proves nothing"
  assert np.abs(own - np.round(255 * theirs)).max() <= 1
