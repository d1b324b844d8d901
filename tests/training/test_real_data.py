"""Training on photographs: pixels, latents encoded online, and shards."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from support.configs import tiny_config
from support.photographs import write_photographs
from support.runs import run
from support.tiny_pipeline import VOCAB, WIDTH, write_language, write_vae
from support.tokenizer import write_tokenizer

from data_pipelines.captioned import CaptionedConfig
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.files import schema
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained.encoders import EncodersConfig
from lumina_jax.train import train
from lumina_jax.training import data, metrics, run_config

SIDE = 16  # Pixels of a bucket's square.


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """A folder of many shapes; one file is cut short."""
  folder = write_photographs(tmp_path_factory.mktemp("photographs"), 24)
  cut = folder / "china_03.jpg"
  cut.write_bytes(cut.read_bytes()[:700])
  return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """Folders of a tiny autoencoder and a tiny language model."""
  top = tmp_path_factory.mktemp("models")
  vae = write_vae(top / "vae")
  text = write_tokenizer(write_language(top / "text_encoder"), vocab=VOCAB)
  return EncodersConfig(str(vae), str(text), dtype="float32")


def replace(config, **sections):
  """The config with fields of sections changed."""
  return dataclasses.replace(
    config,
    **{
      name: dataclasses.replace(getattr(config, name), **changes)
      for name, changes in sections.items()
    },
  )


def pixels(source):
  """A run on pixels with the embedded text encoder."""
  config = tiny_config("text_to_image", training__steps=4)
  captioned = CaptionedConfig(
    sources=(str(source),),
    resolutions=(SIDE,),
    row_tokens=4 * 64,
    row_words=4 * 8,
    row_samples=4,
    condition_dropout=0.2,
    bad_limit=0.1,
  )
  return replace(
    dataclasses.replace(config, data=captioned),
    model=dict(channels=3),
    training=dict(sample_prompts=("china",), samples_per_prompt=1),
    sizes=dict(default=(SIDE, SIDE), ladder=((256, 8, 1),), rows=2),
  )


def latents(source, models):
  """The same on latents, with features of a frozen language model."""
  config = dataclasses.replace(
    pixels(source),
    text_encoder=TextFeaturesConfig(WIDTH, max_tokens=8),
    encoders=models,
  )
  return replace(
    config,
    model=dict(channels=4, text_width=WIDTH),
    data=dict(resolutions=(2 * SIDE,)),
  )


@contextlib.contextmanager
def one_more_image(folder):
  Image.new("RGB", (99, 50)).save(folder / "a_new_one.png")
  (folder / "a_new_one.txt").write_text("black")
  try:
    yield
  finally:
    for suffix in (".png", ".txt"):
      (folder / f"a_new_one{suffix}").unlink()


def test_a_started_run_keeps_its_list_of_images(photographs, tmp_path):
  config = pixels(photographs)
  batches = data.make_batches(config, folder=tmp_path)
  before, bad = batches.batch(3), []
  for i in range(4):
    bad += batches.load(i).bad_records
  assert any("china_03.jpg" in error for error in bad)
  with one_more_image(photographs):
    anew = data.make_batches(config, folder=tmp_path)
  assert anew.fingerprint != batches.fingerprint  # It has not started yet.
  data.make_batches(config, folder=tmp_path)
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  with one_more_image(photographs):
    after = data.make_batches(config, folder=tmp_path).batch(3)
    fresh = data.make_batches(config).batch(3)
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert any(
    not np.array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (before, fresh)), strict=True)
  )


@pytest.mark.e2e
@pytest.mark.usefixtures("shared_programs")
def test_too_many_bad_images_stop_the_run(photographs, tmp_path):
  strict = replace(pixels(photographs), data=dict(bad_limit=0.0))
  with pytest.raises(OSError, match=r"data.bad_limit = 0; .*china_03"):
    train(strict, epath.Path(tmp_path))


def test_a_config_of_real_data_can_be_written_and_read(photographs, models):
  config = latents(photographs, models)
  assert run_config.parse(schema.to_dict(config)) == config


def assert_trains(config, workdir):
  state = train(config, epath.Path(workdir))
  rows = metrics.read(workdir)
  assert int(state.step) == len(rows) == 4 and int(state.skipped) == 0
  assert all(np.isfinite(row["loss"]) for row in rows)
  assert rows[-1]["useful_tokens"] > 0.7
  assert Image.open(workdir / "samples" / "data.png").size[0] > 100
  pipe = LuminaPipeline.from_workdir(workdir)
  image = pipe("flower", seed=1, output_type="np").images[0]
  assert image.shape[-1] == 3 and np.isfinite(image).all()
  return rows


@pytest.mark.e2e
@pytest.mark.usefixtures("shared_programs")
def test_pixels_of_a_folder(photographs, tmp_path, caplog):
  rows = assert_trains(pixels(photographs), tmp_path)
  assert rows[-1]["bad_records"] > 0
  assert "china_03.jpg" in caplog.text


@pytest.mark.e2e
@pytest.mark.usefixtures("shared_programs")
def test_latents_and_features_encoded_online_or_in_advance(
  photographs, models, tmp_path
):
  online = latents(photographs, models)
  assert_trains(online, tmp_path / "online")
  shards = tmp_path / "shards"
  run(
    "encode", f"--source={photographs}", f"--output={shards}",
    f"--vae={models.vae}", f"--text_encoder={models.text}",
    f"--resolutions={2 * SIDE}", f"--unit={2 * SIDE // 8}", "--max_tokens=8",
    "--dtype=float32", "--hidden=penultimate", "--records_per_shard=16",
  )  # fmt: skip
  sources = (str(shards),)
  assert_trains(replace(online, data=dict(sources=sources)), tmp_path / "off")
