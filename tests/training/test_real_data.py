"""Training on photographs: pixels, latents made on the way, and shards."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from sklearn.datasets import load_sample_images
from support.configs import ROOT, tiny_config
from support.tiny_pipeline import VOCAB, WIDTH, write_language, write_vae
from support.tokenizer import write_tokenizer

from data_pipelines.captioned import CaptionedConfig
from lumina_jax import train as training
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.files import schema
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.runs import run_encoders
from lumina_jax.training import data, metrics, run_config
from lumina_jax.training.run_config import EncodersConfig

NAMES = "china", "flower"
SIDE = 16  # pixels of a bucket's square


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """Parts of two photographs, of many shapes; one file is cut short."""
  folder = tmp_path_factory.mktemp("photographs")
  rng = np.random.default_rng(0)
  for name, image in zip(NAMES, load_sample_images().images, strict=True):
    for i in range(24):
      height, width = rng.integers(40, 120, 2)
      y, x = rng.integers(300, size=2)
      part = Image.fromarray(image[y : y + height, x : x + width])
      part.save(folder / f"{name}_{i:02}.jpg")
      (folder / f"{name}_{i:02}.txt").write_text(f"{name}, part {i}")
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


def pixels(source, **changes):
  """A run on pixels with the embedded text encoder."""
  config = tiny_config("text_to_image", training__steps=4)
  media = CaptionedConfig(
    sources=(str(source),),
    resolutions=(SIDE,),
    row_tokens=4 * 64,
    row_words=4 * 8,
    row_samples=4,
    condition_dropout=0.2,
    bad_limit=0.1,
  )
  model = dataclasses.replace(config.model, channels=3)
  plan = dataclasses.replace(
    config.training, sample_prompts=("china",), samples_per_prompt=1
  )
  sampling = dataclasses.replace(
    config.sampling, height=SIDE, width=SIDE, ladder=((256, 8, 1),), rows=2
  )
  return dataclasses.replace(
    config, model=model, data=media, training=plan, sampling=sampling, **changes
  )


def latents(source, models):
  """The same on latents, with features of a frozen language model."""
  config = pixels(source)
  channels = run_encoders.encoders.vae(
    models.vae, dataclasses.replace(config.model, channels=4),
    run_encoders.Options(),
  )[0].cfg.latent_channels  # fmt: skip
  frozen = TextFeaturesConfig(WIDTH, max_tokens=8)
  model = dataclasses.replace(config.model, channels=channels, text_width=WIDTH)
  return dataclasses.replace(
    config,
    model=model,
    text_encoder=frozen,
    encoders=models,
    data=dataclasses.replace(config.data, resolutions=(2 * SIDE,)),
    sampling=dataclasses.replace(
      config.sampling, height=2 * SIDE, width=2 * SIDE
    ),
  )


def assert_trains(config, workdir, channels):
  state = training.train(config, epath.Path(workdir))
  rows = metrics.read(workdir)
  assert int(state.step) == len(rows) == 4 and int(state.skipped) == 0
  assert all(np.isfinite(row["loss"]) for row in rows)
  assert rows[-1]["useful_tokens"] > 0.7
  assert Image.open(workdir / "samples" / "data.png").size[0] > 100
  pipe = LuminaPipeline.from_workdir(workdir)
  image = pipe("flower", seed=1, output_type="np").images[0]
  assert image.shape[-1] == channels and np.isfinite(image).all()
  return rows


def test_pixels_of_a_folder(photographs, tmp_path, caplog):
  rows = assert_trains(pixels(photographs), tmp_path, 3)
  assert rows[-1]["bad_records"] > 0
  assert "china_03.jpg" in caplog.text
  # What the run began with is kept: a picture that comes changes no batch.
  batches = data.make_batches(pixels(photographs), folder=tmp_path)
  before = batches.batch(3)
  Image.new("RGB", (99, 50)).save(photographs / "a_new_one.png")
  (photographs / "a_new_one.txt").write_text("black")
  try:
    after = data.make_batches(pixels(photographs), folder=tmp_path).batch(3)
    fresh = data.make_batches(pixels(photographs)).batch(3)
  finally:
    for suffix in (".png", ".txt"):
      (photographs / f"a_new_one{suffix}").unlink()
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert any(
    not np.array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (before, fresh)), strict=True)
  )


def test_the_list_of_a_run_that_never_began_is_made_anew(photographs, tmp_path):
  before = data.make_batches(pixels(photographs), folder=tmp_path)
  Image.new("RGB", (99, 50)).save(photographs / "a_new_one.png")
  (photographs / "a_new_one.txt").write_text("black")
  try:
    after = data.make_batches(pixels(photographs), folder=tmp_path)
  finally:
    for suffix in (".png", ".txt"):
      (photographs / f"a_new_one{suffix}").unlink()
  assert before.fingerprint != after.fingerprint


def test_too_many_broken_pictures_stop_the_run(photographs, tmp_path):
  strict = pixels(photographs)
  strict = dataclasses.replace(
    strict, data=dataclasses.replace(strict.data, bad_limit=0.0)
  )
  with pytest.raises(OSError, match=r"data.bad_limit = 0; .*china_03"):
    training.train(strict, epath.Path(tmp_path))


def test_a_config_of_real_data_can_be_written_and_read(photographs, models):
  config = latents(photographs, models)
  again = run_config.parse(schema.to_dict(config))
  assert again == config


@pytest.mark.slow
def test_latents_and_features_made_on_the_way_or_before(
  photographs, models, tmp_path
):
  online = latents(photographs, models)
  assert_trains(online, tmp_path / "online", 3)
  shards = tmp_path / "shards"
  words = [
    f"--source={photographs}", f"--output={shards}", f"--vae={models.vae}",
    f"--text_encoder={models.text}", f"--resolutions={2 * SIDE}",
    f"--unit={2 * SIDE // 8}", "--max_tokens=8", "--dtype=float32",
    "--hidden=penultimate", "--records_per_shard=16",
  ]  # fmt: skip
  done = subprocess.run(
    [sys.executable, "-m", "lumina_jax.encode", *words],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  offline = dataclasses.replace(
    online, data=dataclasses.replace(online.data, sources=(str(shards),))
  )
  assert_trains(offline, tmp_path / "offline", 3)
  both = dataclasses.replace(
    online,
    data=dataclasses.replace(
      online.data, sources=(str(shards), str(photographs)), weights=(1.0, 2.5)
    ),
  )
  assert_trains(both, tmp_path / "both", 3)
