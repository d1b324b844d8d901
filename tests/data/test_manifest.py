"""Manifests are read back as written, whole or not at all."""

import json
import os

import pytest
from support.store import BUCKET, accidents, mounted

from data_pipelines.manifest import read_manifest, write_manifest
from data_pipelines.records import Group, Record

GROUPS = [
  Group("a", (Record("x/1.jpg", ("red", "größer\n\u2028"), 3, 5),), ("bad",)),
  Group(
    "b",
    tuple(Record(f"gs://b/{n}.png", (str(n),), n, 1) for n in range(1, 4)),
    weight=0.3,
  ),
]


@pytest.fixture
def path(tmp_path):
  write_manifest(tmp_path / "manifest.jsonl", GROUPS)
  return tmp_path / "manifest.jsonl"


def test_groups_come_back(path):
  assert read_manifest(path) == read_manifest(str(path)) == GROUPS
  assert os.listdir(path.parent) == [path.name]
  assert len(path.read_text().splitlines()) == 1 + 4


def test_names_that_are_not_text_come_back(tmp_path):
  name = os.fsdecode(b"\xff.jpg")
  groups = [Group(name, (Record(name, ("a",), 1, 1),))]
  write_manifest(tmp_path / "m", groups)
  assert read_manifest(tmp_path / "m") == groups


def test_an_error_leaves_the_old_manifest(path):
  whole = path.read_bytes()
  broken = Group("c", (*GROUPS[1].records, Record("y", (object(),), 1, 1)))
  with pytest.raises(TypeError):
    write_manifest(path, [broken])
  assert path.read_bytes() == whole
  assert os.listdir(path.parent) == [path.name]


def test_a_manifest_cut_anywhere_is_refused(path):
  whole = path.read_bytes()
  for length in range(len(whole) - 1, -1, -3):
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"manifest\.jsonl"):
      read_manifest(path)


def test_a_store_holds_a_manifest_whole_or_not_at_all(monkeypatch):
  with mounted(monkeypatch) as store:
    write_manifest(f"{BUCKET}/m.jsonl", GROUPS[:1])
    for _ in accidents(
      store, lambda: write_manifest(f"{BUCKET}/m.jsonl", GROUPS)
    ):
      assert list(store.objects) == ["bucket/m.jsonl"]
      assert read_manifest(f"{BUCKET}/m.jsonl") in (GROUPS[:1], GROUPS)


def test_files_that_are_not_manifests(path):
  header, *records = path.read_text().splitlines(keepends=True)
  newer = json.loads(header) | {"version": 2}
  for text, message in [
    ("a snowman", "not a manifest of images"),
    ("3\n", "not a manifest of images"),
    ('{"file_name": "x.jpg"}\n', "not a manifest of images"),
    (json.dumps(newer) + "\n" + "".join(records), "version 2; .* scan"),
    ("".join([header, *records[1:]]), "cut off after 2 of 3 records"),
    ("".join([header, *records, records[0]]), "more records than its header"),
    ("".join([header, "[1]\n", *records[1:]]), r"jsonl:2 is not a record"),
  ]:
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
      read_manifest(path)
  path.unlink()
  with pytest.raises(FileNotFoundError):
    read_manifest(path)
