"""Videos at tiny size: trained and sampled through the commands.

A video's picture is its frames side by side.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.configs import ROOT, randomised, tiny_config, tiny_flags

from lumina_jax.model.network import Network
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling import output
from lumina_jax.tokens import NEXTFRAME, NEXTLINE
from lumina_jax.training import metrics
from lumina_jax.training.data import make_batches

FRAMES, HEIGHT, WIDTH = 4, 6, 4  # of configs/text_to_video.py:tiny


@pytest.mark.parametrize("axes", [1, 3])
def test_frames_differ_and_companions_change_nothing(axes):
  """With Flag-DiT's positions and separators, and with Next-DiT's axes."""
  run = tiny_config("text_to_video")
  if axes == 3:
    model = dataclasses.replace(run.model, raster=False, separators=False)
    run = dataclasses.replace(run, model=model)
  assert run.model.position_axes == axes
  pipe = randomised(run)
  alone = pipe("pattern 7", output_type="latent").images[0]
  assert alone.shape == (FRAMES, HEIGHT, WIDTH, 4)
  assert np.abs(np.diff(alone, axis=0)).max(axis=(1, 2, 3)).min() > 1e-3
  together = pipe(
    ["pattern 3", "pattern 7"], height=[4, HEIGHT], output_type="latent"
  ).images
  assert together[0].shape == (FRAMES, 4, WIDTH, 4)
  np.testing.assert_allclose(together[1], alone, atol=2e-4)


def command(module: str, *words) -> str:
  done = subprocess.run(
    [sys.executable, "-m", f"lumina_jax.{module}", *map(str, words)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
@pytest.mark.long
def test_the_commands_train_and_draw_videos(tmp_path):
  workdir, pictures = tmp_path / "video", tmp_path / "pictures"
  words = ["--config=configs/text_to_video.py:tiny", f"--workdir={workdir}"]
  printed = command("train", *words, *tiny_flags())
  assert "--prompt='pattern 3'" in printed and "state: " in printed
  assert [row["step"] for row in metrics.read(workdir)] == [1, 2, 3, 4]
  sheet = Image.open(workdir / "samples" / "step_000004.png")
  assert sheet.width > FRAMES * WIDTH * 8
  assert "data:image/png;base64" in (workdir / "report.html").read_text()
  words = [f"--workdir={workdir}", f"--output={pictures}"]
  command("sample", *words, "--prompt=pattern 7")
  image = Image.open(pictures / "pattern_7_seed0_0.png")
  assert image.size == (FRAMES * (WIDTH + 1) - 1, HEIGHT)


def test_rows_hold_lines_and_frames_that_end_with_tokens_of_their_own():
  run = tiny_config("text_to_video")
  tokens, _ = make_batches(run).batch(0)
  sizes = {size[0] for size in run.data.sizes}
  for kinds, segments in zip(tokens.kinds, tokens.segments, strict=True):
    for sample in range(1, segments.max() + 1):
      mine = kinds[segments == sample]
      assert mine[-1] == NEXTFRAME and mine[-2] == NEXTLINE
      assert np.sum(mine == NEXTFRAME) in sizes


def test_sizes_that_do_not_fit_name_the_frames():
  run = tiny_config("text_to_video")
  pipe = LuminaPipeline(Network(run.model, run.text_encoder), {}, run.sampling)
  with pytest.raises(ValueError, match=r"frames=4, height=7.*nearest .*: 8"):
    pipe.check_sizes("pattern 7", height=7)
  pipe.sampling = dataclasses.replace(run.sampling, frames=64)
  with pytest.raises(ValueError, match=r"frames=64, .* largest rung"):
    pipe.check_sizes("pattern 7")
  with pytest.raises(ValueError, match="frames = 0"):
    dataclasses.replace(run.sampling, frames=0)


def test_a_picture_of_a_video_has_its_frames_from_left_to_right():
  video = np.linspace(-1, 1, 3 * 2 * 2 * 1, dtype=np.float32)
  video = video.reshape(3, 2, 2, 1)
  image = np.asarray(output.to_pil(video))
  assert image.shape == (2, 8)
  for frame in range(3):
    expected = output.to_uint8(video[frame])[..., 0]
    np.testing.assert_array_equal(image[:, 3 * frame : 3 * frame + 2], expected)
  assert (image[:, [2, 5]] == 255).all()  # A line between them.
  assert output.to_float(video).shape == video.shape
