"""Folders and YAML files of images: every layout, and every error named."""

import json
import re

import pytest
from PIL import Image
from support.store import BUCKET, mounted

from data_pipelines import image_loader
from data_pipelines import scan as scanning
from data_pipelines.records import Record
from data_pipelines.scan import scan
from data_pipelines.source import BadRecord

WIDTH, HEIGHT = 24, 16


def save_image(path, width=WIDTH, height=HEIGHT, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (width, height), "red").save(path, **options)
  return path


def save_captioned(path, caption="a red field", **options):
  save_image(path, **options).with_suffix(".txt").write_text(caption)


def write_lines(path, items):
  lines = [i if isinstance(i, str) else json.dumps(i) for i in items]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def scan_one(source):
  (group,) = scan(str(source))
  return group


def test_a_folder_of_images_with_texts(tmp_path):
  save_captioned(tmp_path / "b" / "x.png", " two words \n", width=31)
  save_captioned(tmp_path / "a.JPG", "größer", height=9)
  save_image(tmp_path / "b" / "deep" / "er" / "y.webp")
  (tmp_path / "b" / "deep" / "er" / "y.json").write_text('["one", "two"]')
  for number, suffix in enumerate(("jpeg", "bmp", "tif", "tiff", "gif")):
    save_captioned(tmp_path / "c" / f"{number}.{suffix}", suffix)
  (tmp_path / "notes.txt").write_text("no image of this name")
  group = scan_one(tmp_path)
  assert group.name == str(tmp_path)
  assert (group.errors, group.weight) == ((), 1.0)
  assert group.records[:3] == (
    Record(f"{tmp_path}/a.JPG", ("größer",), 9, WIDTH),
    Record(f"{tmp_path}/b/deep/er/y.webp", ("one", "two"), HEIGHT, WIDTH),
    Record(f"{tmp_path}/b/x.png", ("two words",), HEIGHT, 31),
  )
  texts = [record.captions[0] for record in group.records[3:]]
  assert texts == ["jpeg", "bmp", "tif", "tiff", "gif"]


@pytest.mark.parametrize(
  "value, captions",
  [
    ("a", ("a",)),
    (["a", " b "], ("a", "b")),
    ({"caption": "a", "text": "b"}, ("a",)),
    ({"captions": ["a", "b"]}, ("a", "b")),
    ({"prompt": "a", "seed": 3}, ("a",)),
    ({"caption": None, "text": "a"}, ("a",)),
  ],
)
def test_captions_in_json(tmp_path, value, captions):
  save_image(tmp_path / "x.png")
  (tmp_path / "x.json").write_text(json.dumps(value))
  assert scan_one(tmp_path).records[0].captions == captions


def test_a_byte_order_mark_is_not_part_of_a_caption(tmp_path):
  save_image(tmp_path / "x.png")
  (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfred")
  assert scan_one(tmp_path).records[0].captions == ("red",)


def test_records_are_found_from_elsewhere(tmp_path, monkeypatch):
  save_captioned(tmp_path / "data" / "x.png")
  write_lines(tmp_path / "a.jsonl", [{"path": "x.png", "prompt": "red"}])
  (tmp_path / "data.yaml").write_text("META: [{path: a.jsonl, root: data}]")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  for source in ("data", "./data/../data", "data.yaml", "~/data"):
    assert scan_one(source).records[0].path == str(tmp_path / "data" / "x.png")


def test_links_to_folders_are_named_and_not_followed(tmp_path):
  folder = tmp_path / "photos"
  (folder / "a").mkdir(parents=True)
  save_captioned(folder / "x.png")
  save_captioned(folder / "a/y.png")
  (folder / "z.png").symlink_to(folder / "x.png")  # Links to files are fine.
  (folder / "z.txt").symlink_to(folder / "x.txt")
  (folder / "a/loop").symlink_to(folder)
  (folder / "self").symlink_to(folder / "self")
  group = scan_one(folder)
  names = ["a/y.png", "x.png", "z.png"]
  assert [r.path for r in group.records] == [str(folder / n) for n in names]
  assert group.errors == (
    f"{folder}/a/loop: a link to a folder; name that as a source",
  )


def test_hidden_names_are_skipped(tmp_path):
  save_captioned(tmp_path / "x.png")
  save_captioned(tmp_path / ".x.png")
  save_captioned(tmp_path / ".cache" / "deep" / "x.png")
  group = scan_one(tmp_path)
  assert [r.path for r in group.records] == [f"{tmp_path}/x.png"]
  assert group.errors == ()


def test_sizes_are_those_of_upright_images(tmp_path):
  turned = Image.Exif()
  turned[0x0112] = 8
  for suffix in ("jpg", "png", "tif", "webp"):
    save_captioned(tmp_path / f"x.{suffix}", exif=turned)
  sizes = {(r.height, r.width) for r in scan_one(tmp_path).records}
  assert sizes == {(WIDTH, HEIGHT)}


def test_every_error_of_a_folder_is_named(tmp_path):
  save_captioned(tmp_path / "good.png")
  texts = {
    "empty.txt": b" \n",
    "bytes.txt": b"\xff\xfe\x00",
    "list.json": b"[]",
    "numbers.json": b'["a", 3]',
    "blank.json": b'["a", ""]',
    "keys.json": b'{"title": "a"}',
    "cut.json": b'{"caption": "a',
    "half.json": b'"\\ud83d"',
    "three.json": b"3",
    "both.txt": b"a",
    "both.json": b'"a"',
    "text.txt": b"a",
  }
  for name, data in texts.items():
    (tmp_path / name).write_bytes(data)
    save_image((tmp_path / name).with_suffix(".png"))
  save_image(tmp_path / "alone.png")
  (tmp_path / "text.png").write_text("a snowman")
  group = scan_one(tmp_path)
  assert [r.path for r in group.records] == [f"{tmp_path}/good.png"]
  reasons = {
    "alone.png": "no caption",
    "both.png": "no caption; expected one .txt or .json",
    "empty.txt": "an empty caption",
    "bytes.txt": "not UTF-8 text",
    "list.json": "an empty list",
    "numbers.json": "the caption 3 is not a text",
    "blank.json": "an empty caption",
    "keys.json": "expected one of caption, captions, prompt, text",
    "cut.json": "not JSON",
    "half.json": "surrogates not allowed",
    "three.json": "the caption 3 is not a text",
    "text.png": "not an image that can be read",
  }
  assert len(group.errors) == len(reasons)
  for name, reason in reasons.items():
    (error,) = [e for e in group.errors if e.startswith(f"{tmp_path}/{name}")]
    assert re.search(f"^.*{name}: .*{re.escape(reason)}", error)


def test_metadata_list_the_images_to_use(tmp_path):
  save_image(tmp_path / "a" / "x.png")
  save_captioned(tmp_path / "unnamed.png")
  write_lines(
    tmp_path / "metadata.jsonl",
    [
      {"file_name": "a/x.png", "text": "red"},
      "",
      {"file_name": "far.png", "captions": ["a", "b"], "height": 5, "width": 7},
      {"file_name": "none.png", "text": "red"},
      '{"file_name": "cut',
      {"text": "red"},
      {"file_name": "a/x.png", "text": " "},
      {"file_name": "a/x.png", "text": "red", "height": 5},
      ["a/x.png", "red"],
      {"file_name": "https://host/x.png", "text": "red"},
      {"file_name": "\0.png", "text": "red"},
    ],
  )
  group = scan_one(tmp_path)
  assert group.records == (
    Record(f"{tmp_path}/a/x.png", ("red",), HEIGHT, WIDTH),
    # Its header is not read.
    Record(f"{tmp_path}/far.png", ("a", "b"), 5, 7),
  )
  file = f"{tmp_path}/metadata.jsonl"
  wanted = [
    (f"{file}:5: ", "not JSON"),
    (f"{file}:6: ", "no image; expected one of file_name"),
    (f"{file}:7: a/x.png: ", "an empty caption"),
    (f"{file}:8: a/x.png: ", "height and width (5, None) are not pixels"),
    (f"{file}:9: ", "expected an object"),
    (
      f"{file}:10: ",
      "https://host/x.png cannot be read over the network; copy it",
    ),
    (f"{tmp_path}/none.png: ", "No such file"),
    (f"{tmp_path}/\0.png: ", "null byte"),
  ]
  assert len(group.errors) == len(wanted)
  for error, (place, reason) in zip(group.errors, wanted, strict=True):
    assert error.startswith(place) and reason in error


def turns(image, caption):
  question = {"from": "human", "value": "draw"}
  return {
    "image": image,
    "conversations": [question, {"from": "gpt", "value": caption}],
  }


def test_yaml_files_give_a_group_for_each_entry(tmp_path):
  here, there = tmp_path / "here", tmp_path / "there"
  save_image(here / "x.png")
  save_image(there / "y.png")
  write_lines(here / "a.jsonl", [turns("x.png", "red")])
  absolute = str(there / "y.png")
  items = [
    {"path": "y.png", "prompt": ["red", "crimson"]},
    {"image_url": absolute, "prompt": "red"},
    turns("none.png", "red"),
    {"image": "y.png", "conversations": [{"value": "red"}]},
    {"image": "y.png", "conversations": [{"value": "red"}, {}]},
  ]
  (here / "b.json").write_text(json.dumps(items))
  source = here / "data.yaml"
  source.write_text(
    "META:\n  - path: a.jsonl\n  - path: b.json\n    root: ../there\n"
    "    ratio: 0.25\n    type: photos\n"
  )
  first, second = scan(str(source))
  assert first.name == str(here / "a.jsonl")
  assert (first.weight, second.weight) == (1.0, 0.25)
  assert first.records == (Record(f"{here}/x.png", ("red",), HEIGHT, WIDTH),)
  assert [r.captions for r in second.records] == [("red", "crimson"), ("red",)]
  assert second.records[1].path == absolute
  listed = f"{here}/b.json"
  assert len(second.errors) == 3
  assert second.errors[0].startswith(f"{listed}[3]: y.png: conversations")
  assert second.errors[1].startswith(f"{listed}[4]: y.png: the second turn")
  assert re.search(r"there/none\.png: No such file", second.errors[2])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("META: [", "is not YAML"),
    ("- path: x.jsonl", "expected META"),
    ("META: []", "expected META"),
    ("META: [x.jsonl]", r"META\[0\]: expected {path: x.jsonl}"),
    (
      "META: [{path: x.jsonl, ration: 1}]",
      "unknown key 'ration'; did you mean 'ratio'",
    ),
    ("META: [{path: x.jsonl, ratio: 0}]", "ratio 0: must be above 0"),
    (
      "META: [{path: x.jsonl, ratio: 2}]",
      "ratio 2: must be above 0 and at most 1",
    ),
    ("META: [{path: x.jsonl, ratio: all}]", "ratio 'all' is not a number"),
    ("META: [{path: x.jsonl, root: 3}]", "root 3 is not a folder"),
    (
      "META: [{path: x.jsonl}, {path: ./x.jsonl}]",
      r"META\[1\]: .* appears twice",
    ),
    ("META: [{path: x.csv}]", r"x\.csv: expected a \.json or \.jsonl file"),
    ("META: [{path: broken.json}]", r"broken\.json: not JSON"),
    ("META: [{path: object.json}]", "expected a list of objects"),
    (
      "META: [{path: 's3://b/x.jsonl'}]",
      "s3://b/x.jsonl cannot .*; copy it, or",
    ),
    ("META: [{path: x.jsonl, root: 'http://h'}]", "http://h cannot be read"),
  ],
)
def test_yaml_files_that_are_malformed(tmp_path, text, message):
  write_lines(tmp_path / "x.jsonl", [{"path": "x.png", "prompt": "red"}])
  (tmp_path / "broken.json").write_text("[")
  (tmp_path / "object.json").write_text("{}")
  (tmp_path / "data.yaml").write_text(text)
  with pytest.raises(ValueError, match=message) as caught:
    scan(str(tmp_path / "data.yaml"))
  assert str(caught.value).startswith(str(tmp_path / "data.yaml"))


def test_a_list_that_is_missing_is_named(tmp_path):
  (tmp_path / "data.yml").write_text("META: [{path: none.jsonl}]")
  with pytest.raises(FileNotFoundError, match=r"META\[0\].*none\.jsonl"):
    scan(str(tmp_path / "data.yml"))


def test_sources_that_do_not_exist(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r"no folder or YAML file .*/none"
  ):
    scan(str(tmp_path / "none"))
  (tmp_path / "x.csv").write_text("a,b")
  with pytest.raises(ValueError, match=r"x\.csv: expected a folder"):
    scan(str(tmp_path / "x.csv"))
  for source in ("s3://bucket/data", "https://host/data.yaml"):
    with pytest.raises(
      ValueError, match=f"{source} cannot .* copy it, or mount"
    ):
      scan(source)


def test_sources_without_a_record(tmp_path):
  with pytest.raises(ValueError, match=r"no images .*; expected x\.jpg with"):
    scan(str(tmp_path))
  for number in range(5):
    save_image(tmp_path / f"{number}.png")
  with pytest.raises(ValueError, match="5 cannot be used, such as") as caught:
    scan(str(tmp_path))
  assert str(caught.value).count("no caption") == scanning.MAX_SHOWN


def test_folders_in_a_store(tmp_path, monkeypatch):
  with mounted(monkeypatch) as store:
    save_captioned(tmp_path / "x.png")
    for name in ("data/a/x.png", "data/y.png", "list/x.png"):
      store.objects[f"bucket/{name}"] = (tmp_path / "x.png").read_bytes()
    for name in ("data/a/x.txt", "data/y.txt"):
      store.objects[f"bucket/{name}"] = b"red"
    lines = b'{"file_name": "x.png", "text": "red"}\n'
    store.objects["bucket/list/metadata.jsonl"] = lines
    folders = scan_one(f"{BUCKET}/data"), scan_one(f"{BUCKET}/list")
    names = ["data/a/x.png", "data/y.png"], ["list/x.png"]
    for group, wanted in zip(folders, names, strict=True):
      paths = [f"{BUCKET}/{name}" for name in wanted]
      assert group.records == tuple(
        Record(path, ("red",), HEIGHT, WIDTH) for path in paths
      )
    store.revive(fails=0, way="refusal")
    with pytest.raises(BadRecord, match=r"x\.png: StoreError: 503, come again"):
      image_loader.image_size(f"{BUCKET}/list/x.png")


def test_many_images_keep_their_order_and_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(scanning, "CHUNK", 4)
  for number in range(50):
    save_captioned(tmp_path / f"{number:02}.bmp", str(number), width=number + 1)
  (tmp_path / "17.bmp").write_bytes(b"")
  counts = []
  show = lambda bar, done: counts.append((done, bar._total))  # noqa: E731
  monkeypatch.setattr(scanning.Progress, "show", show)
  (group,) = scan(str(tmp_path), threads=3)
  numbers = [n for n in range(50) if n != 17]
  assert [r.captions[0] for r in group.records] == [str(n) for n in numbers]
  assert [r.width for r in group.records] == [n + 1 for n in numbers]
  assert len(group.errors) == 1
  assert counts == [(min(4 * n, 50), 50) for n in range(1, 14)]
