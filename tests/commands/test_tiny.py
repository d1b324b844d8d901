"""Published families at tiny size through the commands: train, resume, sample.

Their data are synthetic: a pattern for each class, so that there is something
to learn and something to recognise in what is drawn.
"""

import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from support.configs import ROOT, tiny_flags

from configs import imagenet, text_to_image, text_to_video
from data_pipelines.synthetic import pattern
from lumina_jax import evaluate
from lumina_jax import train as training
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.training import metrics, run_config


def command(module: str, *words) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"lumina_jax.{module}", *map(str, words)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Four steps of configs/imagenet.py:tiny, and what they printed."""
  workdir = tmp_path_factory.mktemp("runs") / "imagenet"
  words = ["--config=configs/imagenet.py:tiny", f"--workdir={workdir}"]
  done = command("train", *words, *tiny_flags())
  assert done.returncode == 0, done.stderr
  return workdir, done.stdout


def test_run_says_how_to_go_on(finished):
  workdir, printed = finished
  rows = metrics.read(workdir)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert Image.open(workdir / "samples" / "step_000004.png").mode == "RGB"
  page = (workdir / "report.html").read_text()
  for text in (printed, page):
    assert f"sample --workdir={workdir} --prompt=0" in text
    assert "lumina_jax.evaluate" not in text


def test_resumed_equals_uninterrupted_bit_for_bit(finished, tmp_path):
  workdir, _ = finished
  broken = epath.Path(shutil.copytree(workdir, tmp_path / "broken"))
  (broken / "checkpoints" / "4").rmtree()
  words = ["--config=configs/imagenet.py:tiny", f"--workdir={broken}"]
  # In a process of its own, as the whole one was: what other tests have left
  # in this one may compile another program.
  done = command("train", *words, *tiny_flags())
  assert done.returncode == 0 and "resumed at step 2" in done.stdout
  whole = LuminaPipeline.from_workdir(workdir).params
  assert whole.keys() == {"backbone"}
  again = LuminaPipeline.from_workdir(broken).params
  jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_evaluate_says_that_it_reads_digits(finished, monkeypatch):
  flags = types.SimpleNamespace(workdir=str(finished[0]), cells=4)
  monkeypatch.setattr(evaluate.flags, "FLAGS", flags)
  with pytest.raises(ValueError, match="was not trained on digits"):
    evaluate.main(None)


@pytest.mark.slow
def test_sample_draws_classes(finished, tmp_path):
  words = [f"--workdir={finished[0]}", f"--output={tmp_path}"]
  done = command("sample", *words, "--prompt=7", "--prompt=")
  assert done.returncode == 0, done.stderr
  assert Image.open(tmp_path / "7_seed0_0.png").size == (8, 8)
  done = command("sample", *words, "--prompt=207")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "'207': the classes of this network are 0 to 9" in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_text_to_image_runs(tmp_path):
  words = ["--config=configs/text_to_image.py:tiny", f"--workdir={tmp_path}"]
  done = command("train", *words, *tiny_flags())
  assert done.returncode == 0, done.stderr
  assert "--prompt='pattern 3'" in done.stdout
  done = command(
    "sample",
    f"--workdir={tmp_path}",
    "--prompt=pattern 7",
    "--height=4",
    "--width=16",
    f"--output={tmp_path / 'pictures'}",
  )
  assert done.returncode == 0, done.stderr
  image = Image.open(tmp_path / "pictures" / "pattern_7_seed0_0.png")
  assert image.size == (16, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
  "family",
  [
    pytest.param(family, marks=pytest.mark.long)
    for family in (imagenet, text_to_image, text_to_video)
  ],
)
def test_the_loss_falls_and_prompts_are_drawn(family, tmp_path):
  """As the config has it, 600 steps."""
  config = run_config.parse(family.get_config("tiny"))
  training.train(config, epath.Path(tmp_path))
  rows = metrics.read(tmp_path)
  assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
  pipe = LuminaPipeline.from_workdir(tmp_path)
  prompts = [config.data.caption.format(c) for c in range(10)]
  drawn = np.stack(pipe(prompts, output_type="latent").images)
  shape = drawn.shape[1:-1]
  patterns = np.stack([pattern(c, shape, 4) for c in range(10)])
  alike = drawn.reshape(10, -1) @ patterns.reshape(10, -1).T
  read = np.argmax(alike, axis=1)
  assert np.mean(read == np.arange(10)) >= 0.9
