"""Files of samples of every medium, with their metadata."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from lumina_jax.media import AUDIO, IMAGE, MEDIA, VIDEO, audio, video

TEXTS = {"parameters": "größer\nSteps: 2", "lumina_jax": '{"seed": 3}'}
RNG = np.random.default_rng(0)
SAMPLES = {
  "image": RNG.uniform(-1.5, 1.5, (8, 12, 3)).astype("f4"),
  "video": RNG.uniform(-1.5, 1.5, (3, 8, 12, 3)).astype("f4"),
  "audio": RNG.uniform(-1.5, 1.5, (40, 5)).astype("f4"),
}


def write(medium, folder, sample=None):
  """Files of a sample by name, and no others."""
  sample = SAMPLES[medium.name] if sample is None else sample
  path = epath.Path(folder) / f"a{medium.suffix}"
  files = medium.write(sample, path, TEXTS)
  assert files[0] == path
  assert sorted(files) == sorted(epath.Path(folder).iterdir())
  return {file.name: file for file in files}


@pytest.mark.parametrize("name", MEDIA)
def test_every_picture_holds_the_metadata(name, tmp_path):
  files = write(MEDIA[name], tmp_path)
  pictures = [file for file in files if file.endswith(".png")]
  assert pictures
  for file in pictures:
    with Image.open(tmp_path / file) as image:
      assert image.text == TEXTS


@pytest.mark.parametrize("name", MEDIA)
def test_a_preview_is_a_picture(name):
  """Also of one channel, and of latents of more than three."""
  *shape, _ = SAMPLES[name].shape
  for channels in (1, 3, 16):
    preview = MEDIA[name].preview(np.zeros((*shape, channels), "f4"))
    assert isinstance(preview, Image.Image)


def test_a_small_image_has_a_larger_one_beside_it(tmp_path):
  files = write(IMAGE, tmp_path)
  assert list(files) == ["a.png", "a_x16.png"]
  sizes = [Image.open(tmp_path / file).size for file in files]
  assert sizes == [(12, 8), (192, 128)]
  large = np.zeros((65, 65, 3), "f4")
  (tmp_path / "b").mkdir()
  assert list(write(IMAGE, tmp_path / "b", large)) == ["a.png"]


def test_frames_of_a_video_lie_side_by_side(tmp_path):
  sample = SAMPLES["video"]
  write(VIDEO, tmp_path)
  strip = np.asarray(Image.open(tmp_path / "a.png"))
  assert strip.shape == (8, 3 * 12 + 2 * video.GAP, 3)
  for number, frame in enumerate(VIDEO.formats["pil"](sample)):
    start = number * (12 + video.GAP)
    np.testing.assert_array_equal(strip[:, start : start + 12], frame)
    np.testing.assert_array_equal(frame, VIDEO.formats["uint8"](sample)[number])
  assert (strip[:, 12 : 12 + video.GAP] == 255).all()


def test_audio_is_an_array_with_a_picture_beside_it(tmp_path):
  sample = SAMPLES["audio"]
  assert list(write(AUDIO, tmp_path)) == ["a.npy", "a.png"]
  np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), sample)
  # Time from left to right, the first channel at the bottom.
  picture = np.asarray(audio.preview(sample)).astype(float)
  assert picture.shape == (5, 40)
  expected = (np.clip(sample, -1, 1) + 1) * 127.5
  np.testing.assert_allclose(picture[-1], expected[:, 0], atol=0.5)
  np.testing.assert_allclose(picture[0], expected[:, -1], atol=0.5)
