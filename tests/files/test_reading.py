"""Faults of the moment cost no picture: reading is tried again."""

import errno
import io
import os

import numpy as np
import pytest
from PIL import Image

from data_pipelines.scan import scan
from data_pipelines.source import BadRecord
from lumina_jax.media import image_file as picture_file

PASSING = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)


@pytest.fixture
def pauses(monkeypatch):
  """Seconds that were slept for, in no time."""
  slept = []
  monkeypatch.setattr(picture_file.time, "sleep", slept.append)
  return slept


@pytest.fixture(params=["png", "jpg", "tif", "bmp"])
def path(tmp_path, request):
  shades = np.random.default_rng(0).integers(256, size=(90, 110, 3))
  path = tmp_path / f"x.{request.param}"
  Image.fromarray(shades.astype(np.uint8)).save(path)
  path.with_suffix(".txt").write_text("a field of shades")
  return path


class Flaky(io.BufferedReader):
  """A handle that is good for so many reads and then never again."""

  def __init__(self, path, reads):
    super().__init__(io.FileIO(path))
    self._reads = reads

  def readinto(self, buffer):
    if not self._reads:
      raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    self._reads -= 1
    return super().readinto(buffer)


def pixels(path):
  with picture_file.opened(str(path)) as image:
    return np.asarray(image)


def failing(monkeypatch, faults):
  """Opening raises these, one at a time; then it opens."""
  usual = picture_file.open_bytes

  def opens(path):
    if faults:
      raise faults.pop(0)
    return usual(path)

  monkeypatch.setattr(picture_file, "open_bytes", opens)


def test_opening_is_tried_again(path, monkeypatch, pauses):
  expected = pixels(path)
  for number in PASSING:
    failing(monkeypatch, [OSError(number, os.strerror(number))] * 2)
    np.testing.assert_array_equal(pixels(path), expected)
  failing(monkeypatch, [ConnectionResetError("gone"), TimeoutError("late")])
  assert picture_file.size(str(path)) == (90, 110)
  assert pauses == [0.1, 0.5] * (len(PASSING) + 1)


def test_reading_goes_on_where_a_handle_broke(path, monkeypatch, pauses):
  expected, handles = pixels(path), []

  def opens(path):
    handles.append(Flaky(path, 2 + 3 * len(handles)))
    return handles[-1]

  monkeypatch.setattr(picture_file, "open_bytes", opens)
  np.testing.assert_array_equal(pixels(path), expected)
  assert len(handles) > 1
  assert len(pauses) == len(handles) - 1
  assert all(handle.closed for handle in handles)


def test_a_fault_that_stays_is_a_bad_record(path, monkeypatch, pauses):
  failing(monkeypatch, [OSError(errno.EIO, "Input/output error")] * 4)
  with pytest.raises(BadRecord, match="Input/output error"):
    pixels(path)
  assert pauses == [0.1, 0.5, 2.0]


def test_what_is_missing_or_cut_short_is_not_tried_again(path, pauses):
  path.write_bytes(path.read_bytes()[:600])
  with pytest.raises(BadRecord):
    pixels(path)
  path.unlink()
  with pytest.raises(BadRecord, match="No such file"):
    pixels(path)
  with pytest.raises(FileNotFoundError):
    picture_file.read(str(path))
  assert not pauses


def test_captions_too(tmp_path, path, monkeypatch, pauses):
  faults, usual = [OSError(errno.EIO, "broken")] * 2, picture_file._read

  def read(path):
    if faults:
      raise faults.pop()
    return usual(path)

  monkeypatch.setattr(picture_file, "_read", read)
  (group,) = scan(str(tmp_path), threads=1)
  assert group.records[0].captions == ("a field of shades",)
  assert pauses == [0.1, 0.5]
