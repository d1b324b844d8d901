"""The encode command: real images, real processes, and kill -9."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from support.configs import ROOT
from support.shards import contents, grid, tokenize
from support.tiny_pipeline import VOCAB, WIDTH, write_language, write_vae
from support.tokenizer import write_tokenizer

from data_pipelines import shard_folder
from data_pipelines.shard_source import ShardSource
from data_pipelines.source import Draw
from lumina_jax import encode
from lumina_jax.encoders.text_features import TextFeaturesConfig

IMAGES = 24
SMALL = (
  "--resolutions=16",
  "--unit=4",
  "--records_per_shard=20",
  "--threads=2",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Images with captions; one is cut short, one has no caption."""
  folder = tmp_path_factory.mktemp("source") / "photos"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(IMAGES):
    values = rng.integers(256, size=(*rng.integers(20, 60, 2), 3))
    Image.fromarray(values.astype(np.uint8)).save(folder / f"{i:02}.png")
    texts = [f"image {i} of many", f"{i}"]
    (folder / f"{i:02}.json").write_text(json.dumps(texts))
  cut = folder / "05.png"
  cut.write_bytes(cut.read_bytes()[:500])
  (folder / "09.json").unlink()
  return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """Folders of a tiny autoencoder and a tiny language model."""
  top = tmp_path_factory.mktemp("models")
  write_vae(top / "vae")
  write_tokenizer(write_language(top / "text_encoder"), vocab=VOCAB)
  return [f"--vae={top / 'vae'}", f"--text_encoder={top / 'text_encoder'}"]


@pytest.fixture(scope="module")
def command():
  """Runs the command in this process."""
  before = set(flags.FLAGS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encode.start, "run", lambda main, together: None)
    encode.run()  # Defines the flags.

  def run(*words):
    with flagsaver.flagsaver():
      encode.main(flags.FLAGS(["encode", *map(str, words)]))

  yield run
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def start(*words) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "lumina_jax.encode", *map(str, words)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process: subprocess.Popen) -> str:
  out, errors = process.communicate()
  assert process.returncode == 0, errors
  return out


def kill_after(process, folder, complete):
  """Kills a process when some shards are complete."""
  while len(list(folder.glob("shard_*.json"))) < complete:
    assert process.poll() is None, process.communicate()
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def assert_equal(folder, other):
  assert contents(folder) == contents(other)


def assert_close(folder, other):
  """Networks on a busy CPU may round the last bit of float16 differently."""
  names = contents(folder).keys()
  assert names == contents(other).keys()
  one, two = (ShardSource(f, grid) for f in (folder, other))
  assert one.sizes == two.sizes and one.kinds == two.kinds
  for number in range(len(one.sizes)):
    a, b = (s.sample(Draw(0, number, number)) for s in (one, two))
    assert a.caption == b.caption and a.grid == b.grid
    np.testing.assert_allclose(a.patches, b.patches, atol=1e-2)
    np.testing.assert_allclose(a.text, b.text, atol=2e-2, rtol=2e-2)


def check_kill_and_share(tmp_path, command, words, complete, check):
  """Compares what one process writes with what two do after a kill."""
  whole, shared = tmp_path / "whole", tmp_path / "shared"
  command(*words, f"--output={whole}")
  both = (*words, f"--output={shared}", "--num_processes=2")
  kill_after(start(*both), shared, complete)
  left = contents(shared)
  assert shard_folder.MANIFEST not in left
  outputs = [finish(p) for p in (start(*both), start(*both, "--process_id=1"))]
  assert "exist already" in outputs[0]
  after = contents(shared)
  for name, data in left.items():
    # A shard with a sidecar is complete, and is not written again.
    if pathlib.Path(name).with_suffix(".json").name in left:
      assert after[name] == data
  check(shared, whole)
  assert any("train on them" in text for text in outputs)
  return whole


@pytest.mark.e2e
def test_a_killed_run_continues_and_shares_its_work(tmp_path, command, photos):
  words = (f"--source={photos}", "--epochs=15", "--max_bad=0.2", *SMALL)
  whole = check_kill_and_share(tmp_path, command, words, 3, assert_equal)
  manifest = shard_folder.read_manifest(whole)
  assert manifest["records"] == 15 * (IMAGES - 2)
  assert {bad["name"] for bad in manifest["bad"]} == {"05.png"}
  assert len(manifest["bad"]) == 15
  (error,) = manifest["errors"]
  assert "09.png: no caption" in error


@pytest.mark.e2e
def test_a_killed_run_of_networks_continues(tmp_path, command, photos, models):
  few = (
    *("--epochs=4", "--max_aspect_ratio=1.6"),
    *("--bucket_choices=2", "--max_bad=0.2"),
  )
  words = (f"--source={photos}", *few, *SMALL, *models)
  whole = check_kill_and_share(tmp_path, command, words, 1, assert_close)
  source = ShardSource(whole, grid, dropout=0.1)
  source.check_network(4, dataclasses.asdict(TextFeaturesConfig(WIDTH)))
  shapes, texts = set(), set()
  for number in range(4 * (IMAGES - 2)):
    sample = source.sample(Draw(1, number, number))
    assert np.isfinite(sample.patches).all()
    assert sample.text.shape[1] == WIDTH
    shapes.add(sample.grid.shape)
    texts.add(sample.caption)
  # Sides of 16 pixels are 8 latents; crops have all shapes of that area.
  assert len(shapes) > 1
  assert all(h * w <= 64 and not h % 2 and not w % 2 for h, w in shapes)
  assert {"", "image 3 of many", "3"} <= texts


def test_it_encodes_and_reports(tmp_path, command, photos, capsys):
  words = (f"--source={photos}", f"--output={tmp_path / 'out'}", *SMALL)
  command(*words)
  output = capsys.readouterr().out
  assert "encoding: 23/23 records  1 bad" in output
  assert "left out: 05.png: " in output
  assert "2 records left out; manifest.json lists them" in output
  assert f"22 records, 0.3 MB, in 2 shards in {tmp_path / 'out'}" in output
  command("--verify", f"--output={tmp_path / 'out'}")
  assert "have not changed" in capsys.readouterr().out
  source = ShardSource(tmp_path / "out", grid, tokenize)
  captions = {source.sample(Draw(e, 0, 0)).caption for e in range(20)}
  assert captions == {"image 0 of many", "0"}


@pytest.mark.parametrize(
  ("words", "error", "message"),
  [
    ([], ValueError, "name the images and the resolutions"),
    (["--resolutions=16"], ValueError, "name the images"),
    (["images"], ValueError, "--source=images"),
    (["--source={}"], ValueError, "resolutions"),
    (["--source={}", "--resolutions=15"], ValueError, "15 .* multiple of 16"),
    (["--source=none", "--resolutions=16"], FileNotFoundError, "none"),
    (
      ["--source={}", "--resolutions=16", "--vae=none"],
      FileNotFoundError,
      "none",
    ),
    (["--source={}", *SMALL, "--max_bad=2"], ValueError, "max_bad = 2"),
    (["--source={}", *SMALL, "--max_bad=0"], OSError, "1 of 24 records"),
    (["--verify"], FileNotFoundError, "not a folder of shards"),
  ],
  ids=str,
)
def test_bad_input(tmp_path, command, photos, words, error, message):
  words = [word.format(photos) for word in words]
  with pytest.raises(error, match=message):
    command(f"--output={tmp_path / 'out'}", *words)
  assert not list(tmp_path.glob("out/*.array_record"))


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--source="], "name the images"),
    (["--resolutions=abc"], "--resolutions=abc: 'abc' is not a number"),
    (["--resolutions=16,-8"], "--resolutions=16,-8: '-8' is not a number"),
    (["--seed=-1"], "--seed=-1: -1 is not a non-negative integer"),
    (["--epochs=0"], "--epochs=0"),
    (["--threads=0"], "--threads=0"),
    (["--batch_size=0"], "--batch_size=0"),
    (["--records_per_shard=0"], "--records_per_shard=0"),
    (["--max_bad=nan"], "max_bad = nan"),
    (["--process_id=1"], "--process_id=1 --num_processes=1: processes are"),
    (["--process_id=-1"], "--process_id=-1"),
    (["--num_processes=0"], "--num_processes=0"),
    (["--output="], "--output=FOLDER"),
    (["--output={}/00.png"], "00.png is a file; name a folder"),
    (["--output={}"], "keep shards apart"),
    (["--output={}/../photos/shards"], "keep shards apart"),
    (["--output=gs://bucket/shards"], "mounted as a folder"),
    (["--output=gs://bucket/shards", "--verify"], "mounted as a folder"),
  ],
  ids=str,
)
def test_flags_are_checked_first(
  tmp_path, command, photos, monkeypatch, words, message
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(encode, "_load_encoders", lambda _: pytest.fail("late"))
  before = sorted(photos.iterdir())
  words = [word.format(photos) for word in words]
  errors = ValueError, NotADirectoryError, flags.Error
  with pytest.raises(errors, match=message):
    command(
      f"--source={photos}", f"--output={tmp_path / 'out'}", *SMALL, *words
    )
  assert not list(tmp_path.iterdir())
  assert sorted(photos.iterdir()) == before


def test_a_source_is_the_same_from_any_folder(
  tmp_path, command, photos, monkeypatch, capsys
):
  monkeypatch.chdir(photos.parent)
  (tmp_path / "link").symlink_to(photos)
  words = (f"--output={tmp_path / 'out'}", *SMALL)
  command("--source=photos", *words)
  manifest = shard_folder.read_manifest(tmp_path / "out")
  assert manifest["bad"][0]["name"] == "05.png"
  for source in (photos, "./photos/", tmp_path / "link"):
    capsys.readouterr()
    command(f"--source={source}", *words)
    assert "2 shards exist already" in capsys.readouterr().out
    again = shard_folder.read_manifest(tmp_path / "out")
    assert again["shards"] == manifest["shards"]


def test_other_settings_and_other_images_are_refused(tmp_path, command, photos):
  words = (f"--source={photos}", f"--output={tmp_path / 'out'}", *SMALL)
  command(*words)
  with pytest.raises(ValueError, match=r"crops\.seed: 0 there, 1 now"):
    command(*words, "--seed=1")
  moved = tmp_path / "moved"
  moved.mkdir()
  for name, data in contents(photos).items():
    (moved / name).write_bytes(data)
  command(f"--source={moved}", *words[1:])  # The same images elsewhere.
  (moved / "03.json").write_text('"another caption"')
  with pytest.raises(ValueError, match=r"source\.sha256: "):
    command(f"--source={moved}", *words[1:])


def test_entries_of_different_ratios_are_refused(tmp_path, command, photos):
  listed = [
    {"path": str(photos / f"{i:02}.png"), "prompt": f"{i}"} for i in (1, 2)
  ]
  for item in listed:
    name = f"{item['prompt']}.jsonl"
    (tmp_path / name).write_text(json.dumps(item))
  meta = "META:\n- {path: 1.jsonl}\n- {path: 2.jsonl, ratio: RATIO}\n"
  words = (f"--source={tmp_path / 'all.yaml'}", *SMALL)
  (tmp_path / "all.yaml").write_text(meta.replace("RATIO", "0.5"))
  with pytest.raises(ValueError, match="each into its own folder"):
    command(*words, f"--output={tmp_path / 'out'}")
  (tmp_path / "all.yaml").write_text(meta.replace("RATIO", "1.0"))
  command(*words, f"--output={tmp_path / 'out'}")
  assert shard_folder.read_manifest(tmp_path / "out")["records"] == 2


@pytest.mark.e2e
def test_names_of_images_that_are_not_text(photos, tmp_path):
  copy = tmp_path / os.fsdecode(b"caf\xe9")
  shutil.copytree(photos, copy)
  (copy / "05.png").rename(copy / os.fsdecode(b"\xff.png"))
  output = tmp_path / "out"
  command = (*SMALL, f"--source={copy}", f"--output={output}", "--max_bad=0.2")
  assert r"\udcff.png: no caption" in finish(start(*command))
  assert shard_folder.read_manifest(output)["records"] == IMAGES - 2
