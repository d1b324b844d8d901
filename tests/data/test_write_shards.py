"""Folders of shards: the same bytes however they are written, or none."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.configs import ROOT
from support.shards import SETTINGS, contents, make_job, write

from data_pipelines import shard_checks, shard_folder, shard_writer
from data_pipelines.shard_folder import BadRecordInfo
from data_pipelines.shard_writer import ShardWriter


def test_bad_records_are_listed_and_left_out(plain):
  manifest = shard_folder.read_manifest(plain)
  assert manifest["bad"] == [{"name": "8.png", "reason": "cut short"}]
  assert manifest["records"] == 19
  assert [shard["records"] for shard in manifest["shards"]] == [7, 6, 6]


def test_names_that_are_not_text(tmp_path):
  name = os.fsdecode(b"caf\xe9.png")
  settings = SETTINGS | {"source": {"path": name, "sha256": "0"}}
  writer = ShardWriter(tmp_path, settings, 1)
  (good, *_) = make_job(count=1).records(0)
  writer.write(0, [good, BadRecordInfo("caf?.png", f"{name}: cut short")])
  assert writer.finish([f"{name}: no caption"]) == []
  manifest = shard_folder.read_manifest(tmp_path)
  assert manifest["bad"][0]["reason"] == f"{name}: cut short"
  assert manifest["errors"] == [f"{name}: no caption"]
  assert ShardWriter(tmp_path, settings, 1).find(0) == writer.find(0)


@pytest.mark.parametrize("processes", [2, 5])
def test_any_number_of_processes_writes_the_same(plain, tmp_path, processes):
  folder, job = tmp_path / "shared", make_job(bad=(8,))
  for process in range(processes):
    missing = write(folder, job, process, processes)
    complete = process >= min(processes, job.shards) - 1
    exists = (folder / shard_folder.MANIFEST).exists()
    assert exists == (not missing) == complete
  assert contents(folder) == contents(plain)


def test_missing_and_broken_shards_are_written_again(plain, copy):
  names = [f"shard_{i:05d}-of-00003" for i in range(3)]
  (copy / shard_folder.MANIFEST).unlink()
  (copy / f"{names[0]}.json").unlink()
  (copy / f"{names[1]}.array_record").write_bytes(b"half")
  data = bytearray((copy / f"{names[2]}.array_record").read_bytes())
  data[70] ^= 1
  (copy / f"{names[2]}.array_record").write_bytes(data)
  (copy / f".{names[0]}.array_record.of_process_0").write_bytes(b"leftover")
  assert write(copy, make_job(bad=(8,))) == []
  assert contents(copy) == contents(plain)


class Killed(BaseException):
  """An exception that nothing catches."""


def kill_at(patch, folder, step):
  """Writes until a step towards the disk; returns whether it finished.

  Afterwards nothing is cleaned up, as if the process had been killed.
  """
  steps, killed = iter(range(step)), []

  def counted(function):
    def count_or_die(*args, **options):
      if next(steps, None) is None:
        killed.append(True)
        raise Killed
      return function(*args, **options)

    return count_or_die

  unlink = Path.unlink
  with patch.context() as within:
    within.setattr(shard_writer, "_sync", counted(shard_writer._sync))
    within.setattr(Path, "replace", counted(Path.replace))
    within.setattr(Path, "unlink", lambda *a, **o: killed or unlink(*a, **o))
    with contextlib.suppress(Killed):
      write(folder, make_job(bad=(8,)))
  return not killed


def test_it_may_be_killed_at_any_step(plain, tmp_path, monkeypatch):
  expected = contents(plain)
  for step in range(100):
    folder = tmp_path / f"{step}"
    finished, left = kill_at(monkeypatch, folder, step), contents(folder)
    for name in left.keys() & expected.keys():
      assert left[name] == expected[name]  # Under its own name it is whole.
      if name.startswith("shard_") and name.endswith(".json"):
        assert Path(name).with_suffix(".array_record").name in left
    manifest = shard_folder.MANIFEST in left
    assert manifest <= (expected.keys() <= left.keys())
    write(folder, make_job(bad=(8,)))
    assert contents(folder) == expected
    if finished:
      break
  assert step == 3 + 3 * 6 + 3  # Settings, shards with sidecars, the manifest.


def test_complete_shards_are_not_written_again(plain, copy):
  def never(draw):
    raise AssertionError("read again")

  job = make_job(bad=(8,))
  for source in job.sources:
    source.pixels = never
  assert write(copy, job) == []
  assert contents(copy) == contents(plain)


def test_too_many_bad_records_stop_it_and_no_shard_appears(tmp_path):
  many = range(30, 60)
  with pytest.raises(OSError, match=r"6 of 36 .*max_bad = 0\.05.*35\.png \(c"):
    write(tmp_path, make_job(200, bad=many))
  assert len(list(tmp_path.glob("shard_*.array_record"))) == 5
  assert not list(tmp_path.glob(".*"))
  # From a hundred records on, the share counts.
  assert write(tmp_path, make_job(200, bad=many), max_bad=0.5) == []
  with pytest.raises(OSError, match="30 of 200 records"):
    write(tmp_path, make_job(200, bad=many))
  with pytest.raises(ValueError, match="none of the records"):
    write(tmp_path / "none", make_job(5, bad=range(5)), max_bad=1.0)


def test_other_settings_are_refused_by_name_and_other_paths_are_not(copy):
  moved = SETTINGS | {"source": {"path": "/elsewhere", "sha256": "0"}}
  assert write(copy, make_job(bad=(8,)), settings=moved) == []
  other = moved | {"channels": 4}
  with pytest.raises(ValueError, match=r"\(channels: 3 there, 4 now\)"):
    write(copy, make_job(), settings=other)


def test_two_processes_of_one_number_do_not_write_at_once(tmp_path):
  first, second = (ShardWriter(tmp_path, SETTINGS, 3, 0) for _ in range(2))
  with first.lock():
    with pytest.raises(OSError, match="process 0 is already running"):
      second.lock().__enter__()
    with ShardWriter(tmp_path, SETTINGS, 3, 1).lock():
      pass
  with second.lock():
    pass


@pytest.mark.parametrize("process", [-1, 2])
def test_processes_that_do_not_exist_are_refused(tmp_path, process):
  with pytest.raises(ValueError, match="--num_processes=2"):
    write(tmp_path, make_job(), process, 2)


def test_verify_compares_all_checksums(copy):
  assert shard_checks.verify(copy)["records"] == 19
  path = copy / "shard_00001-of-00003.array_record"
  data = bytearray(path.read_bytes())
  data[70] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r"shard_00001.* has changed"):
    shard_checks.verify(copy)


CODE = """
import sys
from support.shards import make_job, write
write(sys.argv[1], make_job(20))
"""


def limit_file_size():
  """Makes the system refuse large files, as a full disk does."""
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.e2e
def test_a_full_disk_is_reported_and_complete_shards_stay(tmp_path):
  write(tmp_path, make_job(20))
  expected = contents(tmp_path)
  (tmp_path / "shard_00001-of-00003.json").unlink()
  (tmp_path / shard_folder.MANIFEST).unlink()
  done = subprocess.run(
    [sys.executable, "-c", CODE, str(tmp_path)],
    cwd=ROOT / "tests",
    env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
    preexec_fn=limit_file_size,
  )
  assert done.returncode
  assert "a shard could not be written" in done.stderr
  assert "File too large" in done.stderr
  left = contents(tmp_path)
  assert not [name for name in left if name.startswith(".")]
  assert "shard_00001-of-00003.json" not in left
  write(tmp_path, make_job(20))
  assert contents(tmp_path) == expected
