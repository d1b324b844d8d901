"""Transient errors cost no image: reading is tried again."""

import errno
import io
import os

import numpy as np
import pytest
from PIL import Image

from data_pipelines.scan import scan
from lumina_jax.files import reading
from lumina_jax.media import image_file
from lumina_jax.media.image_file import UnreadableImage

TRANSIENT = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)


@pytest.fixture
def pauses(monkeypatch):
  """Seconds that were slept, in no time."""
  seconds = []
  monkeypatch.setattr(reading.time, "sleep", seconds.append)
  return seconds


@pytest.fixture(params=["png", "jpg", "tif", "bmp"])
def path(tmp_path, request):
  values = np.random.default_rng(0).integers(256, size=(90, 110, 3))
  path = tmp_path / f"x.{request.param}"
  Image.fromarray(values.astype(np.uint8)).save(path)
  path.with_suffix(".txt").write_text("a field of shades")
  return path


class Flaky(io.BufferedReader):
  """A handle that fails forever after some reads."""

  def __init__(self, path, reads):
    super().__init__(io.FileIO(path))
    self._reads = reads

  def readinto(self, buffer):
    if not self._reads:
      raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    self._reads -= 1
    return super().readinto(buffer)


def pixels(path):
  with image_file.open_image(str(path)) as image:
    return np.asarray(image)


def fail_first(monkeypatch, name, errors):
  """Makes a function of `reading` raise these errors before it works."""
  function = getattr(reading, name)

  def fail_or_call(path):
    if errors:
      raise errors.pop(0)
    return function(path)

  monkeypatch.setattr(reading, name, fail_or_call)


def test_opening_is_retried(path, monkeypatch, pauses):
  expected = pixels(path)
  for number in TRANSIENT:
    errors = [OSError(number, os.strerror(number))] * 2
    fail_first(monkeypatch, "_open_once", errors)
    np.testing.assert_array_equal(pixels(path), expected)
  errors = [ConnectionResetError("gone"), TimeoutError("late")]
  fail_first(monkeypatch, "_open_once", errors)
  assert image_file.size(str(path)) == (90, 110)
  assert pauses == [0.1, 0.5] * (len(TRANSIENT) + 1)


def test_reading_continues_where_a_handle_broke(path, monkeypatch, pauses):
  expected, handles = pixels(path), []

  def open_flaky(path):
    handles.append(Flaky(path, 2 + 3 * len(handles)))
    return handles[-1]

  monkeypatch.setattr(reading, "_open_once", open_flaky)
  np.testing.assert_array_equal(pixels(path), expected)
  assert len(handles) > 1
  assert len(pauses) == len(handles) - 1
  assert all(handle.closed for handle in handles)


def test_an_error_that_stays_is_raised(path, monkeypatch, pauses):
  errors = [OSError(errno.EIO, "Input/output error")] * 4
  fail_first(monkeypatch, "_open_once", errors)
  with pytest.raises(UnreadableImage, match="Input/output error"):
    pixels(path)
  assert pauses == [0.1, 0.5, 2.0]


def test_missing_and_truncated_files_are_not_retried(path, pauses):
  path.write_bytes(path.read_bytes()[:600])
  with pytest.raises(UnreadableImage):
    pixels(path)
  path.unlink()
  with pytest.raises(UnreadableImage, match="No such file"):
    pixels(path)
  with pytest.raises(FileNotFoundError):
    reading.read_bytes(str(path))
  assert not pauses


def test_captions_are_retried_too(tmp_path, path, monkeypatch, pauses):
  fail_first(monkeypatch, "_read_once", [OSError(errno.EIO, "broken")] * 2)
  (group,) = scan(str(tmp_path), threads=1)
  assert group.records[0].captions == ("a field of shades",)
  assert pauses == [0.1, 0.5]
