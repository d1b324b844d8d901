"""Real photographs: cropped, captioned and credited; and the config for them,
also with a folder of broken files."""

import json
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from configs import photographs as config_file
from data_pipelines import photographs
from data_pipelines.photographs import README, SHIPPED, caption, crops
from data_pipelines.scan import scan
from lumina_jax import train as training
from lumina_jax.runs import previews
from lumina_jax.training import data, metrics, run_config

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def shipped():
  """Photographs of scikit-learn, which is always installed."""
  few = {
    photograph: path
    for photograph, path in photographs.installed().items()
    if photograph.package == "sklearn"
  }
  assert len(few) == 2
  return few


@pytest.fixture(scope="module")
def written(shipped, tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "photographs"
  assert photographs.write(folder, shipped) == 38
  return folder


def photograph(name):
  (one,) = (p for p in SHIPPED if p.file.endswith(f"/{name}"))
  return one


def contents(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make_config(folder, **changes):
  config = config_file.get_config()
  config.data.sources = (str(folder),)
  config.update_from_flattened_dict(changes)
  return run_config.parse(config)


@pytest.mark.parametrize("size", [(640, 427), (384, 303), (512, 512)])
def test_crops_lie_within_and_have_all_shapes(size):
  width, height = size
  boxes = crops(width, height)
  assert 15 <= len(boxes) == len(set(boxes)) <= 20
  shapes = {round((r - l) / (b - t), 1) for l, t, r, b in boxes}
  assert shapes == {0.5, 0.7, 1.0, 1.5, 2.0}
  for left, top, right, bottom in boxes:
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert min(right - left, bottom - top) >= 100
  covered = np.zeros((height, width), int)
  for left, top, right, bottom in boxes:
    covered[top:bottom, left:right] += 1
  assert (covered > 0).all() and covered.max() > 5


def test_a_caption_names_the_objects_in_the_crop():
  rocket, coffee = photograph("rocket.jpg"), photograph("coffee.png")
  assert caption(rocket, WHOLE) == "a rocket, towers under a dark blue sky"
  assert caption(rocket, (0.0, 0.0, 0.4, 1.0)) == (
    "towers under a dark blue sky, left part"
  )
  assert caption(rocket, (0.2, 0.0, 0.8, 0.6)) == (
    "part of a rocket, towers under a dark blue sky, upper part"
  )
  assert caption(coffee, (0.2, 0.0, 0.7, 0.62)) == (
    "a cup of coffee, part of a red saucer, a wooden table, upper part"
  )
  assert caption(coffee, (0.82, 0.5, 1.0, 1.0)) == (
    "a wooden table, lower right part"
  )


def test_a_small_corner_of_an_object_is_named_if_it_fills_the_crop():
  saucer = (0.7, 0.4, 0.8, 0.6)
  assert caption(photograph("coffee.png"), saucer).startswith(
    "part of a red saucer"
  )


def test_every_caption_fits_the_config():
  tokenize = make_config("x").network.tokenize
  texts = {
    caption(p, tuple(value / 1000 for value in box))
    for p in SHIPPED
    for box in crops(1000, 1000)
  }
  assert len(texts) > 100
  assert max(len(tokenize(text)) for text in texts) < config_file.WORDS
  assert all(text.isascii() and text == text.strip() for text in texts)


def test_the_folder_is_a_source_of_images(written):
  (group,) = scan(str(written))
  assert (len(group.records), group.errors) == (38, ())
  for record in group.records:
    assert min(record.height, record.width) >= 100
    assert max(record.height, record.width) <= photographs.MAX_SIDE
  assert {r.width > r.height for r in group.records} == {True, False}


def test_crops_are_upright_and_not_stretched(written, shipped):
  for path in shipped.values():
    with Image.open(path) as image:
      image.load()
    for number, box in enumerate(crops(*image.size)):
      expected = np.asarray(image.crop(box), np.float32)
      with Image.open(written / f"{path.stem}_{number:02d}.jpg") as cut:
        pixels = np.asarray(cut, np.float32)
      off = np.abs(pixels - expected).mean()
      for turned in (pixels[::-1], pixels[:, ::-1]):
        assert 4 * off < np.abs(turned - expected).mean()


def test_every_photograph_is_credited(written, shipped):
  text = (written / README).read_text()
  assert text.startswith(photographs.TITLE)
  for photograph, path in shipped.items():
    assert f"{path.name}: {photograph.credit}" in text
  licences = ("Creative Commons", "public domain", "copyright restrictions")
  assert all(any(x in p.credit for x in licences) for p in SHIPPED)


def test_a_second_run_replaces_the_folder(written, shipped):
  before = contents(written)
  (written / "china_00.jpg").write_bytes(b"broken")
  (written / "flower_03.txt").unlink()
  photographs.write(written, shipped)
  assert contents(written) == before
  assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_an_empty_folder_is_filled(shipped, tmp_path):
  photographs.write(tmp_path, dict(list(shipped.items())[:1]))
  assert len(contents(tmp_path)) == 2 * 19 + 1


def test_folders_of_other_origin_are_not_touched(written, shipped, tmp_path):
  (tmp_path / "holiday.jpg").write_bytes(b"mine")
  with pytest.raises(FileExistsError, match=r"holds holiday\.jpg, which this"):
    photographs.write(tmp_path, shipped)
  assert contents(tmp_path) == {"holiday.jpg": b"mine"}
  with pytest.raises(FileExistsError, match="is a file; name a folder"):
    photographs.write(tmp_path / "holiday.jpg", shipped)
  before = contents(written)
  (written / "zoo.jpg").write_bytes(b"mine")
  try:
    with pytest.raises(FileExistsError, match=r"zoo\.jpg, which this command"):
      photographs.write(written, shipped)
  finally:
    (written / "zoo.jpg").unlink()
  assert contents(written) == before


def test_a_full_disk_leaves_nothing(shipped, tmp_path, monkeypatch):
  write, left = photographs.pathlib.Path.write_bytes, iter(range(5))

  def until_full(path, content):
    if next(left, None) is None:
      raise OSError(28, "No space left on device")
    return write(path, content)

  monkeypatch.setattr(photographs.pathlib.Path, "write_bytes", until_full)
  with pytest.raises(OSError, match="No space"):
    photographs.write(tmp_path / "photographs", shipped)
  assert list(tmp_path.iterdir()) == []


def test_packages_that_are_not_installed_are_skipped(shipped, monkeypatch):
  find = photographs.importlib.util.find_spec
  monkeypatch.setattr(
    photographs.importlib.util,
    "find_spec",
    lambda name: None if name == "skimage" else find(name),
  )
  assert photographs.installed() == shipped


def test_the_command_reports_what_it_wrote(
  shipped, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(photographs, "installed", lambda: shipped)
  photographs.main([f"--output={tmp_path / 'here'}"])
  assert (tmp_path / "here" / README).exists()
  printed = capsys.readouterr().out
  assert printed.startswith(f"38 images of 2 photographs in {tmp_path}/here")
  assert "11 more photographs with: pip install scikit-image" in printed


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "--output"),
    (["here"], "--output"),
    (["--output={}"], "error: .* is a file; name a folder"),
  ],
)
def test_bad_arguments_of_the_command(
  shipped, tmp_path, monkeypatch, capsys, words, message
):
  monkeypatch.setattr(photographs, "installed", lambda: shipped)
  file = tmp_path / "file"
  file.touch()
  with pytest.raises(SystemExit) as caught:
    photographs.main([word.format(file) for word in words])
  assert re.search(message, f"{caught.value} {capsys.readouterr().err}")


def test_rows_are_well_filled(tmp_path):
  shipped = photographs.installed()
  if len(shipped) < len(SHIPPED):
    pytest.skip("needs scikit-image: pip install -r requirements-test.txt")
  lines = []
  for photograph, path in shipped.items():
    with Image.open(path) as image:
      width, height = image.size
    for left, top, right, bottom in crops(width, height):
      share = left / width, top / height, right / width, bottom / height
      item = {"file_name": "x.jpg", "text": caption(photograph, share)}
      item |= {"width": right - left, "height": bottom - top}
      lines.append(json.dumps(item))
  (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
  assert 150 <= len(lines) <= 300
  config = make_config(tmp_path)
  tokens = sum(size[0] for size in data.make_source(config).sizes)
  rows = data.make_batches(config).per_epoch * config.training.batch_rows
  assert tokens / (rows * config.data.row_tokens) >= 0.95


def test_broken_files_are_named_and_left_out(written, tmp_path):
  for name, content in contents(written).items():
    (tmp_path / name).write_bytes(content)
  cut_off = tmp_path / "flower_04.jpg"
  cut_off.write_bytes(cut_off.read_bytes()[:3000])
  (tmp_path / "china_05.txt").unlink()
  batches = data.make_batches(make_config(tmp_path))
  (group,) = scan(str(tmp_path))
  assert len(group.errors) == 1 and "china_05.jpg: no cap" in group.errors[0]
  loaded = [batches.load(number) for number in range(2)]
  bad = [error for one in loaded for error in one.bad_records]
  assert bad and all(str(cut_off) in error for error in bad)
  assert all(np.isfinite(one.batch[0].patches).all() for one in loaded)


@pytest.mark.e2e
def test_a_run_learns_and_shows_its_data(written, tmp_path):
  changes = {
    "model.width": 32,
    "model.depth": 1,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.cond_width": 32,
    "model.text_width": 32,
    "text_encoder.width": 32,
    "optimizer.warmup_steps": 2,
    "training.steps": 20,
    "training.batch_rows": 2,
    "training.log_every": 5,
    "training.checkpoint_every": 20,
    "training.sample_every": 20,
    "training.samples_per_prompt": 1,
    "sampling.num_inference_steps": 2,
  }
  run = make_config(written, **changes)
  state = training.train(run, epath.Path(tmp_path))
  assert int(state.step) == 20
  rows = metrics.read(tmp_path)
  losses = [row["loss"] for row in rows]
  assert losses[-1] < losses[0]
  for name in (previews.DATA, "step_000020.png"):
    with Image.open(tmp_path / "samples" / name) as sheet:
      assert np.ptp(np.asarray(sheet)) > 200
