"""Every family at tiny size through the commands: train, resume, sample.

Data are synthetic: a pattern for each class, so that there is something to
learn and something to recognise in samples.
"""

import shutil
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from support.configs import tiny_flags
from support.runs import run
from support.zygote import fork

from configs import imagenet, text_to_audio, text_to_image, text_to_video
from data_pipelines.synthetic import pattern
from lumina_jax import evaluate
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.train import train
from lumina_jax.training import metrics, run_config

FRAMES, HEIGHT, WIDTH = 4, 6, 4  # Of configs/text_to_video.py:tiny.


def train_tiny(family, workdir, **changes) -> str:
  """Trains four steps, or resumes; returns what the command printed."""
  words = [f"--config=configs/{family}.py:tiny", f"--workdir={workdir}"]
  return run("train", *words, *tiny_flags(**changes))


@pytest.mark.e2e
def test_classes_with_experts(tmp_path):
  changes = dict(
    model__routing=("time", "token"),
    model__experts=4,
    model__active_experts=2,
    model__balance_weight=0.01,
  )
  workdir = tmp_path / "run"
  printed = train_tiny("imagenet", workdir, **changes)
  rows = metrics.read(workdir)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  for row in rows:
    assert 0.5 < row["balance"] <= 4  # 1 = equal load, 4 = one expert only.
  assert Image.open(workdir / "samples" / "step_000004.png").mode == "RGB"
  page = (workdir / "report.html").read_text()
  for text in (printed, page):
    assert f"infer --workdir={workdir} --prompt=0" in text
    assert "lumina_jax.evaluate" not in text
  assert LuminaPipeline.from_workdir(workdir).params.keys() == {"backbone"}
  words = [f"--workdir={workdir}", f"--output={tmp_path / 'samples'}"]
  run("sample", *words, "--prompt=7", "--prompt=")
  assert Image.open(tmp_path / "samples" / "7_seed0_0.png").size == (8, 8)
  failed = fork("sample", *words, "--prompt=207")
  assert failed.returncode == 1 and "Traceback" not in failed.stderr
  assert "'207': the classes of this network are 0 to 9" in failed.stderr


@pytest.mark.e2e
def test_text_to_image_that_predicts_noise(tmp_path):
  changes = dict(
    objective__path="vp", objective__prediction="noise", time__base_tokens=8
  )
  workdir = tmp_path / "run"
  printed = train_tiny("text_to_image", workdir, **changes)
  assert "--prompt='pattern 3'" in printed
  assert all(np.isfinite(row["loss"]) for row in metrics.read(workdir))
  config = run_config.load(workdir)
  assert config.objective.prediction == "noise"
  assert config.time.base_tokens == 8
  size = "--height=4", "--width=16"
  words = [f"--workdir={workdir}", f"--output={tmp_path / 'samples'}"]
  run("sample", *words, *size, "--prompt=pattern 7")
  image = Image.open(tmp_path / "samples" / "pattern_7_seed0_0.png")
  assert image.size == (16, 4)


@pytest.mark.e2e
def test_text_to_video(tmp_path):
  workdir = tmp_path / "run"
  printed = train_tiny("text_to_video", workdir)
  assert "--prompt='pattern 3'" in printed and "state: " in printed
  assert [row["step"] for row in metrics.read(workdir)] == [1, 2, 3, 4]
  sheet = Image.open(workdir / "samples" / "step_000004.png")
  assert sheet.width > FRAMES * WIDTH * 8
  assert "data:image/png;base64" in (workdir / "report.html").read_text()
  words = [f"--workdir={workdir}", f"--output={tmp_path / 'samples'}"]
  run("sample", *words, "--prompt=pattern 7")
  image = Image.open(tmp_path / "samples" / "pattern_7_seed0_0.png")
  assert image.size == (FRAMES * (WIDTH + 1) - 1, HEIGHT)


@pytest.mark.e2e
def test_text_to_audio(tmp_path):
  workdir = tmp_path / "run"
  printed = train_tiny("text_to_audio", workdir)
  assert "--prompt='pattern 3'" in printed
  assert (workdir / "samples" / "step_000004.png").exists()
  copy = shutil.copytree(workdir, tmp_path / "copy")
  shutil.rmtree(copy / "checkpoints" / "4")
  assert "resumed at step 2" in train_tiny("text_to_audio", copy)
  params = [LuminaPipeline.from_workdir(w).params for w in (workdir, copy)]
  jax.tree.map(np.testing.assert_array_equal, *params)
  words = [f"--workdir={workdir}", f"--output={tmp_path / 'samples'}"]
  seconds = 12 / text_to_audio.RATE
  run("sample", *words, "--prompt=pattern 7", f"--audio_length_in_s={seconds}")
  latents = np.load(tmp_path / "samples" / "pattern_7_seed0_0.npy")
  assert latents.shape == (12, 4) and np.isfinite(latents).all()
  assert (tmp_path / "samples" / "pattern_7_seed0_0.png").exists()


def test_evaluate_refuses_a_run_that_is_not_of_digits(tmp_path, monkeypatch):
  config = run_config.parse(imagenet.get_config("tiny"))
  run_config.save(config, tmp_path)
  flags = types.SimpleNamespace(workdir=str(tmp_path), cells=4)
  monkeypatch.setattr(evaluate.flags, "FLAGS", flags)
  with pytest.raises(ValueError, match="was not trained on digits"):
    evaluate.main(None)


@pytest.mark.long
@pytest.mark.parametrize(
  "family", [imagenet, text_to_image, text_to_video, text_to_audio]
)
def test_the_loss_falls_and_samples_follow_prompts(family, tmp_path):
  """The config as it is, 600 steps."""
  config = run_config.parse(family.get_config("tiny"))
  train(config, epath.Path(tmp_path))
  rows = metrics.read(tmp_path)
  assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
  pipe = LuminaPipeline.from_workdir(tmp_path)
  prompts = [config.data.caption.format(c) for c in range(10)]
  latents = np.stack(pipe(prompts, output_type="latent").samples)
  shape = latents.shape[1:-1]
  patterns = np.stack([pattern(c, shape, 4) for c in range(10)])
  similarity = latents.reshape(10, -1) @ patterns.reshape(10, -1).T
  found = np.argmax(similarity, axis=1)
  assert np.mean(found == np.arange(10)) >= 0.9
