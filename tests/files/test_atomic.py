"""A death or a fault leaves the old file or the new one, on disk and store."""

import errno
import os
import pathlib
import resource
import subprocess
import sys
import threading

import pytest
from etils import epath
from support.store import BUCKET, WAYS, StoreError, accidents, mounted

from lumina_jax.files import atomic

OLD, NEW = "old " * 500, "new, and longer: ä " * 1000
PATH = epath.Path(BUCKET) / "run" / "file.txt"


@pytest.fixture
def store(monkeypatch):
  with mounted(monkeypatch) as store:
    yield store


@pytest.fixture
def full_disk():
  """Limits the size of files, in bytes; what exceeds it is an OSError."""
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limited(size, act):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
      act()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

  return limited


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("text", ["", "a", NEW])
@pytest.mark.parametrize("kind", [str, pathlib.Path, epath.Path])
def test_what_is_written_to_a_disk_can_be_read(tmp_path, text, kind):
  path = kind(tmp_path / "file.txt")
  assert atomic.read_text(path) is None
  for _ in range(2):
    atomic.write_text(path, text)
    assert atomic.read_text(path) == text
  assert names(tmp_path) == ["file.txt"]


def test_the_name_may_be_as_long_as_a_disk_allows(tmp_path):
  path = tmp_path / ("x" * 255)
  atomic.write_text(path, NEW)
  assert path.read_text(encoding="utf-8") == NEW


def test_the_rights_are_those_of_any_new_file(tmp_path):
  atomic.write_text(tmp_path / "a", NEW)
  (tmp_path / "b").write_text(NEW)
  a, b = (os.stat(tmp_path / name).st_mode for name in "ab")
  assert a == b


@pytest.mark.parametrize("size", [0, 1, len(NEW) // 2, len(NEW) - 1])
@pytest.mark.parametrize("old", [None, OLD])
def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk, size, old):
  path = tmp_path / "file.txt"
  if old:
    path.write_text(old)
  left = "old file remains" if old else "no file now"
  with pytest.raises(OSError, match=f"file.txt.*{left}"):
    full_disk(size, lambda: atomic.write_text(path, NEW))
  assert atomic.read_text(path) == old
  assert names(tmp_path) == (["file.txt"] if old else [])


@pytest.mark.parametrize("at", ["fsync", "replace"])
@pytest.mark.parametrize(
  "error", [OSError(errno.EIO, "I/O"), KeyboardInterrupt]
)
def test_an_error_at_the_end_leaves_the_old_file(
  tmp_path, monkeypatch, at, error
):
  path = tmp_path / "file.txt"
  path.write_text(OLD)

  def fail(*_):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(atomic.os, at, fail)
    with pytest.raises((OSError, KeyboardInterrupt)):
      atomic.write_text(path, NEW)
  assert path.read_text() == OLD
  assert names(tmp_path) == ["file.txt"]


def test_a_folder_that_is_missing_or_a_file_is_named(tmp_path):
  with pytest.raises(OSError, match=r"cannot write .*nowhere.*no file now"):
    atomic.write_text(tmp_path / "nowhere" / "file.txt", NEW)
  (tmp_path / "file").write_text(OLD)
  with pytest.raises(OSError, match="Not a directory"):
    atomic.write_text(tmp_path / "file" / "file.txt", NEW)
  with pytest.raises(OSError, match="cannot read"):
    atomic.read_text(tmp_path)


def test_writers_at_one_time_do_not_clash(tmp_path):
  path = tmp_path / "file.txt"
  texts = [str(n) * 10**5 for n in range(4)]
  errors = []

  def write(text):
    try:
      for _ in range(10):
        atomic.write_text(path, text)
        assert atomic.read_text(path) in texts
    except BaseException as error:
      errors.append(error)

  threads = [threading.Thread(target=write, args=(text,)) for text in texts]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors
  assert names(tmp_path) == ["file.txt"]


def test_a_killed_writer_leaves_a_whole_file_and_needs_no_jax(tmp_path):
  path = tmp_path / "file.txt"
  program = (
    "import itertools, sys; from lumina_jax.files import atomic\n"
    "assert 'jax' not in sys.modules\n"
    "for n in itertools.count():\n"
    f"  atomic.write_text({str(path)!r}, str(n % 10) * 10**6)\n"
    "  print(n, flush=True)"
  )
  for writes in (1, 3, 6):
    child = subprocess.Popen(
      [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    with child:
      for _ in range(writes):
        assert child.stdout.readline()
      child.kill()
    text = path.read_text()
    assert len(text) == 10**6
    assert len(set(text)) == 1


@pytest.mark.parametrize("text", ["", "a", NEW])
def test_what_is_written_to_a_store_can_be_read(store, text):
  assert atomic.read_text(PATH) is None
  for _ in range(2):
    atomic.write_text(str(PATH), text)
    assert atomic.read_text(PATH) == text
  assert list(store.objects) == ["bucket/run/file.txt"]


def test_a_store_is_told_from_a_disk(tmp_path):
  for path in ("gs://bucket/run", epath.Path("gs://bucket"), "s3://b/x"):
    assert atomic.in_store(path)
  for path in ("run", tmp_path, epath.Path("~/run"), pathlib.Path("/gs2/x")):
    assert not atomic.in_store(path)


@pytest.mark.parametrize("old", [None, OLD])
def test_an_accident_in_a_store_leaves_the_old_or_the_new(store, old):
  if old:
    store.objects["bucket/run/file.txt"] = old.encode()
  seen = set()
  for _ in accidents(store, lambda: atomic.write_text(PATH, NEW)):
    seen.add(atomic.read_text(PATH))
    assert store.objects.keys() <= {"bucket/run/file.txt"}
  assert seen == {old, NEW}


def test_renaming_in_a_store_would_leave_less(store):
  """The fake has the fault that all this is for."""
  path = epath.Path(BUCKET) / "run"

  def rename():
    (path / "new").write_text(NEW)
    (path / "new").replace(PATH)

  left = {frozenset(store.objects) for _ in accidents(store, rename)}
  assert frozenset({"bucket/run/new", "bucket/run/file.txt"}) in left


@pytest.mark.parametrize("way", WAYS[2:])
def test_a_fault_of_a_store_is_no_absence(store, way):
  store.objects["bucket/run/file.txt"] = OLD.encode()
  store.revive(0, way)
  with pytest.raises(OSError, match=r"cannot read gs://bucket/run/file\.txt"):
    atomic.read_text(PATH)
  store.revive(0, way)
  with pytest.raises(OSError, match=r"cannot write .*503") as caught:
    atomic.write_text(PATH, NEW)
  assert isinstance(caught.value.__cause__, StoreError)


def test_without_a_client_it_is_an_import_error(monkeypatch, store):
  def missing(*_, **__):
    raise ImportError("install gcsfs")

  monkeypatch.setattr(store, "open", missing)
  with pytest.raises(ImportError):
    atomic.write_text(PATH, NEW)
  with pytest.raises(ImportError):
    atomic.read_text(PATH)
