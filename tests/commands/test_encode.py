"""The encode command: real pictures, real processes, and kill -9."""

import json
import pathlib
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
from support.tiny_pipeline import VOCAB, WIDTH, write_language, write_vae
from support.tokenizer import write_tokenizer

from data_pipelines import shards
from data_pipelines.shard_source import ShardSource
from data_pipelines.source import Draw
from lumina_jax import encode
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.tokens import Grid

PICTURES = 24
SMALL = ("--sides=16", "--unit=4", "--records_per_shard=20", "--threads=2")


def grid(height, width):
  return Grid((height, width), (2, 2), False, False)


def tokenize(caption):
  return np.zeros((len(caption.split()) or 1, 1), np.int32)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Pictures with captions; one is cut short, one has no caption."""
  folder, rng = tmp_path_factory.mktemp("source") / "photos", None
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(PICTURES):
    shades = rng.integers(256, size=(*rng.integers(20, 60, 2), 3))
    Image.fromarray(shades.astype(np.uint8)).save(folder / f"{i:02}.png")
    texts = [f"picture {i} of many", f"{i}"]
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
  """The command without a process of its own: words in, errors out."""
  before = set(flags.FLAGS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encode.app, "run", lambda main, flags_parser: None)
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


def contents(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def kill_amid(process, folder, complete):
  """Kills a process when so many shards are complete."""
  while len(list(folder.glob("shard_*.json"))) < complete:
    assert process.poll() is None, process.communicate()
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def equal_to_the_byte(folder, other):
  assert contents(folder) == contents(other)


def equal_but_for_rounding(folder, other):
  """Networks on a busy CPU may round otherwise: a number of float16 moves."""
  names = contents(folder).keys()
  assert names == contents(other).keys()
  found = [shards.read_manifest(f)["shards"] for f in (folder, other)]
  assert [s["records"] for s in found[0]] == [s["records"] for s in found[1]]
  ours, theirs = (ShardSource(f, grid) for f in (folder, other))
  assert ours.sizes == theirs.sizes and ours.kinds == theirs.kinds
  for number in range(len(ours.sizes)):
    a, b = (s.sample(Draw(0, number, number)) for s in (ours, theirs))
    assert a.caption == b.caption and a.grid == b.grid
    np.testing.assert_allclose(a.patches, b.patches, atol=1e-2)
    np.testing.assert_allclose(a.text, b.text, atol=2e-2, rtol=2e-2)


def killed_and_shared(tmp_path, command, words, complete, same):
  """What one process writes, and what two do after one was killed."""
  whole, shared = tmp_path / "whole", tmp_path / "shared"
  command(*words, f"--output={whole}")
  both = (*words, f"--output={shared}", "--num_processes=2")
  kill_amid(start(*both), shared, complete)
  left = contents(shared)
  assert shards.MANIFEST not in left
  said = [finish(p) for p in (start(*both), start(*both, "--process_id=1"))]
  assert "are there already" in said[0]
  after = contents(shared)
  for name, data in left.items():
    # What has a sidecar is as it will be, and is not made again.
    if pathlib.Path(name).with_suffix(".json").name in left:
      assert after[name] == data
  same(shared, whole)
  assert any("train on them" in text for text in said)
  return whole


def test_a_killed_run_goes_on_and_shares_its_work(tmp_path, command, photos):
  words = (f"--source={photos}", "--epochs=15", "--max_bad=0.2", *SMALL)
  whole = killed_and_shared(tmp_path, command, words, 3, equal_to_the_byte)
  manifest = shards.read_manifest(whole)
  assert manifest["records"] == 15 * (PICTURES - 2)
  assert {bad["name"] for bad in manifest["bad"]} == {"05.png"}
  assert len(manifest["bad"]) == 15
  (fault,) = manifest["faults"]
  assert "09.png: no caption" in fault


@pytest.mark.slow
def test_latents_too(tmp_path, command, photos, models):
  few = ("--epochs=4", "--longest=1.6", "--choices=2", "--max_bad=0.2")
  words = (f"--source={photos}", *few, *SMALL, *models)
  same = equal_but_for_rounding
  whole = killed_and_shared(tmp_path, command, words, 1, same)
  source = ShardSource(whole, grid, dropout=0.1)
  source.check(4, WIDTH, FrozenTextConfig(WIDTH))
  shapes, texts = set(), set()
  for number in range(4 * (PICTURES - 2)):
    sample = source.sample(Draw(1, number, number))
    assert np.isfinite(sample.patches).all()
    assert sample.text.shape[1] == WIDTH
    shapes.add(sample.grid.shape)
    texts.add(sample.caption)
  # Sides of 16 pixels are 8 latents; crops have all shapes of that area.
  assert len(shapes) > 1
  assert all(h * w <= 64 and not h % 2 and not w % 2 for h, w in shapes)
  assert {"", "picture 3 of many", "3"} <= texts


def test_what_it_says_at_the_end(tmp_path, command, photos, capsys):
  words = (f"--source={photos}", f"--output={tmp_path / 'out'}", *SMALL)
  command(*words)
  said = capsys.readouterr().out
  assert "encoding: 23/23 pictures  1 bad" in said
  assert "left out: 05.png: " in said
  assert "2 in all were left out; manifest.json lists them" in said
  assert f"22 records, 0.3 MB, in 2 shards in {tmp_path / 'out'}" in said
  command("--verify", f"--output={tmp_path / 'out'}")
  assert "as they were written" in capsys.readouterr().out
  source = ShardSource(tmp_path / "out", grid, tokenize)
  captions = {source.sample(Draw(e, 0, 0)).caption for e in range(20)}
  assert captions == {"picture 0 of many", "0"}


@pytest.mark.parametrize(
  ("words", "error", "message"),
  [
    ([], ValueError, "name the pictures and the sides"),
    (["--sides=16"], ValueError, "name the pictures"),
    (["pictures"], ValueError, "--source=pictures"),
    (["--source={}"], ValueError, "sides"),
    (["--source={}", "--sides=15"], ValueError, "side 15 .* multiple of 16"),
    (["--source=none", "--sides=16"], FileNotFoundError, "none"),
    (["--source={}", "--sides=16", "--vae=none"], FileNotFoundError, "none"),
    (["--source={}", *SMALL, "--max_bad=2"], ValueError, "max_bad = 2"),
    (["--source={}", *SMALL, "--max_bad=0"], OSError, "1 of 24 records"),
    (["--verify"], FileNotFoundError, "no folder of shards"),
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
    (["--source="], "name the pictures"),
    (["--sides=abc"], "--sides=abc: 'abc' is no number"),
    (["--sides=16,-8"], "--sides=16,-8: '-8' is no number"),
    (["--seed=-1"], "--seed=-1: at least 0"),
    (["--epochs=0"], "--epochs=0"),
    (["--threads=0"], "--threads=0"),
    (["--batch_size=0"], "--batch_size=0"),
    (["--records_per_shard=0"], "--records_per_shard=0"),
    (["--max_bad=nan"], "max_bad = nan"),
    (["--process_id=1"], "--process_id=1 --num_processes=1: processes count"),
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
def test_flags_are_looked_at_before_anything_else(
  tmp_path, command, photos, monkeypatch, words, message
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(encode, "_encoders", lambda args: pytest.fail("begun"))
  before = sorted(photos.iterdir())
  words = [word.format(photos) for word in words]
  with pytest.raises((ValueError, NotADirectoryError), match=message):
    command(
      f"--source={photos}", f"--output={tmp_path / 'out'}", *SMALL, *words
    )
  assert not list(tmp_path.iterdir())
  assert sorted(photos.iterdir()) == before


def test_nowhere_to_write(command):
  with pytest.raises(ValueError, match="--output=FOLDER"):
    command("--source=x", "--sides=16")


def test_a_source_is_the_same_wherever_the_command_starts(
  tmp_path, command, photos, monkeypatch, capsys
):
  monkeypatch.chdir(photos.parent)
  (tmp_path / "link").symlink_to(photos)
  words = (f"--output={tmp_path / 'out'}", *SMALL)
  command("--source=photos", *words)
  manifest = shards.read_manifest(tmp_path / "out")
  assert manifest["bad"][0]["name"] == "05.png"
  for source in (photos, "./photos/", tmp_path / "link"):
    capsys.readouterr()
    command(f"--source={source}", *words)
    assert "2 shards are there already" in capsys.readouterr().out
    again = shards.read_manifest(tmp_path / "out")
    assert again["shards"] == manifest["shards"]


def test_other_settings_and_other_pictures_are_refused(
  tmp_path, command, photos
):
  words = (f"--source={photos}", f"--output={tmp_path / 'out'}", *SMALL)
  command(*words)
  with pytest.raises(ValueError, match=r"crops\.seed: 0 there, 1 now"):
    command(*words, "--seed=1")
  moved = tmp_path / "moved"
  moved.mkdir()
  for name, data in contents(photos).items():
    (moved / name).write_bytes(data)
  command(f"--source={moved}", *words[1:])  # The same pictures elsewhere.
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
  with pytest.raises(ValueError, match="each into a folder of its own"):
    command(*words, f"--output={tmp_path / 'out'}")
  (tmp_path / "all.yaml").write_text(meta.replace("RATIO", "1.0"))
  command(*words, f"--output={tmp_path / 'out'}")
  assert shards.read_manifest(tmp_path / "out")["records"] == 2
