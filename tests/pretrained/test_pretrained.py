"""LuminaPipeline.from_pretrained and save_pretrained: every kind of folder."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_pipeline as tiny
from support.configs import ROOT, fake_devices
from support.families import FAMILIES, random_params
from support.tokenizer import write_tokenizer

from lumina_jax import LuminaPipeline, convert
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.interop import load_weights, save_pytorch

EXACT = dict(dtype="float32")
CALL = dict(
  prompt=tiny.PROMPT, seed=1, num_inference_steps=2, output_type="uint8"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny.write_diffusers(tmp_path_factory.mktemp("hub") / "peer")


@pytest.fixture(scope="module")
def pipe(folder):
  return LuminaPipeline.from_pretrained(folder, **EXACT)


@pytest.fixture(scope="module")
def picture(pipe):
  (image,) = pipe(**CALL).images
  assert np.ptp(image) > 100
  return image


def copy(folder, to, *left_out):
  shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*left_out))
  return to


def change(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_of_diffusers(pipe, picture):
  assert picture.shape == (16, 16, 3)  # The trained square, in pixels.
  assert pipe.dtype == "float32"
  assert pipe.network.text_encoder == TextFeaturesConfig(tiny.WIDTH)
  assert sorted(pipe.components) == [
    "scheduler",
    "text_encoder",
    "tokenizer",
    "transformer",
    "vae",
  ]
  latents = np.ones((1, 8, 8, 4), np.float32)
  text = np.ones((1, 3, tiny.WIDTH), np.float32)
  velocity = pipe.transformer(latents, 0.5, text=text)
  assert velocity.shape == latents.shape and np.ptp(velocity) > 0.1


def test_a_folder_of_the_original_and_encoders_elsewhere(
  folder, tmp_path, picture
):
  original = tiny.write_original(tmp_path / "original")
  pipe = LuminaPipeline.from_pretrained(
    original, vae=folder, text_encoder=folder, **EXACT
  )
  np.testing.assert_array_equal(pipe(**CALL).images[0], picture)


def test_weights_alone_that_we_converted(folder, tmp_path):
  convert.convert(folder, tmp_path / "ours", "lumina_jax")
  with pytest.raises(FileNotFoundError, match="say which text_encoder"):
    LuminaPipeline.from_pretrained(tmp_path / "ours")
  pipe = LuminaPipeline.from_pretrained(
    tmp_path / "ours", vae=folder, text_encoder=folder, **EXACT
  )
  assert pipe.network.text_encoder == TextFeaturesConfig(tiny.WIDTH)


def test_encoders_that_the_original_names(folder, tmp_path, picture):
  """The tokenizer lies with the language model, or where it says."""
  model = copy(folder / "text_encoder", tmp_path / "gemma")
  words = copy(folder / "tokenizer", tmp_path / "words")
  said = dict(lm=str(model), vae=str(folder / "vae"))
  apart = tiny.write_original(
    tmp_path / "apart", **said, tokenizer_path=str(words)
  )
  shutil.copytree(words, model, dirs_exist_ok=True)
  said["tokenizer_path"] = None
  together = tiny.write_original(tmp_path / "together", **said)
  for original in (apart, together):
    pipe = LuminaPipeline.from_pretrained(original, **EXACT)
    np.testing.assert_array_equal(pipe(**CALL).images[0], picture)
  unknown = tiny.write_original(tmp_path / "unknown", **said | dict(vae="x"))
  with pytest.raises(FileNotFoundError, match="x does not exist"):
    LuminaPipeline.from_pretrained(unknown)


def test_weights_alone_of_diffusers(folder, picture):
  pipe = LuminaPipeline.from_pretrained(
    folder / "transformer", vae=folder / "vae", text_encoder=folder, **EXACT
  )
  # What it was trained on is not said there: 1024 pixels, so ask.
  image = pipe(**CALL, height=16, width=16).images[0]
  assert image.shape == picture.shape
  assert pipe.sampling.beyond.side == 1024 // tiny.FACTOR


@pytest.mark.parametrize("layout", ["lumina_jax", "diffusers"])
def test_what_is_saved_draws_the_same_and_carries_its_terms(
  pipe, picture, tmp_path, layout
):
  pipe.save_pretrained(tmp_path / "saved", layout=layout, dtype="float32")
  again = LuminaPipeline.from_pretrained(tmp_path / "saved", **EXACT)
  assert again.sampling == pipe.sampling
  np.testing.assert_array_equal(again(**CALL).images[0], picture)
  terms = tmp_path / "saved" / "LICENSE.md"
  assert terms.read_text() == "Terms of the network."
  words = tmp_path / "saved" / "text_encoder" / "NOTICE"
  assert words.read_text() == "Terms of the words."
  pixels = tmp_path / "saved" / "vae" / "LICENSE"
  assert pixels.read_text() == "Terms of the pixels."
  # Saved again in its place, the same; and never by accident.
  with pytest.raises(FileExistsError, match="saved exists"):
    again.save_pretrained(tmp_path / "saved", layout=layout)
  again.save_pretrained(tmp_path / "saved", layout=layout, overwrite=True)
  assert terms.exists() and words.exists()


def test_saved_over_its_own_folder_a_pipeline_goes_on(
  folder, tmp_path, monkeypatch
):
  """Also from a relative name, and with parts that are loaded when needed."""
  own = copy(folder, tmp_path / "own")
  monkeypatch.chdir(tmp_path)
  pipe = LuminaPipeline.from_pretrained("own", one_at_a_time=True, **EXACT)
  (before,) = pipe(**CALL).images
  monkeypatch.chdir("/")
  pipe.save_pretrained(own, overwrite=True)
  assert not (own / "transformer").exists()
  np.testing.assert_array_equal(pipe(**CALL).images[0], before)
  assert np.ptp(pipe(**CALL | dict(prompt="fox")).images[0]) > 50


@pytest.mark.parametrize(
  ("make", "message"),
  [
    ("vae/notes.txt", r"holds more than weights \(vae/notes\.txt\)"),
    ("notes.txt", r"holds more than weights \(notes\.txt\)"),
  ],
)
def test_files_of_others_are_never_overwritten(
  pipe, folder, tmp_path, make, message
):
  there = copy(folder, tmp_path / "there")
  (there / make).write_text("precious")
  with pytest.raises(FileExistsError, match=message):
    pipe.save_pretrained(there, layout="diffusers", overwrite=True)
  assert (there / make).read_text() == "precious"


def test_a_language_model_is_no_pipeline_to_overwrite(pipe, folder, tmp_path):
  there = copy(folder / "text_encoder", tmp_path / "there", "NOTICE")
  with pytest.raises(FileExistsError, match="holds no pipeline"):
    pipe.save_pretrained(there, overwrite=True)


@pytest.mark.parametrize("path", ["gs://bucket/pipe", "pipe.pt"])
def test_places_that_are_no_folders(pipe, path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"buckets are not|looks like a file"):
    pipe.save_pretrained(path)
  assert not list(tmp_path.iterdir())


def test_a_language_model_that_is_an_object_is_missed_aloud(
  pipe, folder, tmp_path, caplog
):
  other = LuminaPipeline.from_pretrained(
    folder, text_encoder=pipe.text_encoder, **EXACT
  )
  other.save_pretrained(tmp_path / "saved")
  assert "gets no text_encoder/" in caplog.text


def test_a_save_that_fails_leaves_what_was_there(pipe, tmp_path, monkeypatch):
  saved = tmp_path / "saved"
  pipe.save_pretrained(saved, layout="diffusers")
  before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}

  def full(*args):
    raise OSError("No space left on device")

  monkeypatch.setattr(shutil, "copyfile", full)
  with pytest.raises(OSError, match="No space left"):
    pipe.save_pretrained(saved, layout="diffusers", overwrite=True)
  assert [p.name for p in tmp_path.iterdir()] == ["saved"]
  assert before == {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}


def test_a_network_without_a_language_model_is_not_saved_for_diffusers(
  folder, tmp_path
):
  pipe = LuminaPipeline.from_pretrained(folder, text_encoder=False, **EXACT)
  with pytest.raises(ValueError, match="has a text_encoder, and this pipeline"):
    pipe.save_pretrained(tmp_path / "saved", layout="diffusers")
  assert not (tmp_path / "saved").exists()
  # Ours may do without, and be given one later.
  pipe.save_pretrained(tmp_path / "own")
  again = LuminaPipeline.from_pretrained(tmp_path / "own", text_encoder=folder)
  assert again(**CALL).images[0].shape == (16, 16, 3)


@pytest.mark.slow
@pytest.mark.long
def test_flag_dit_reads_with_llama(folder, tmp_path):
  original = tiny.write_original(tmp_path / "flag", tiny.FLAG)
  words = write_tokenizer(tmp_path / "llama", "llama", vocab=tiny.VOCAB)
  tiny.write_language(tmp_path / "llama", tiny.LLAMA)
  pipe = LuminaPipeline.from_pretrained(
    original, vae=folder, text_encoder=words, **EXACT
  )
  assert pipe.network.text_encoder == TextFeaturesConfig(
    tiny.WIDTH, hidden="last", max_tokens=128, add_eos=True
  )
  beyond = pipe.sampling.beyond
  assert (beyond.rule, beyond.base_tokens) == ("ntk_plain", 4 * 4 + 2 * 4)
  assert np.ptp(pipe(**CALL, height=16, width=24).images[0]) > 20
  with pytest.raises(ValueError, match="text-to-image Next-DiT only"):
    pipe.save_pretrained(tmp_path / "saved", layout="diffusers")


@pytest.mark.slow
@pytest.mark.long
def test_a_network_of_classes_with_an_autoencoder(folder, tmp_path):
  cfg = FAMILIES["next_imagenet"]
  original = tiny.write_original(tmp_path / "classes", cfg, n_heads=cfg.heads)
  pipe = LuminaPipeline.from_pretrained(original, vae=folder, **EXACT)
  images = pipe(["7", ""], num_inference_steps=2, output_type="np").images
  assert images[0].shape == (16, 16, 3) and images[0].min() >= 0
  assert pipe.text_encoder is None


@pytest.mark.slow
@pytest.mark.long
def test_bfloat16_is_the_default_and_near(folder, picture):
  pipe = LuminaPipeline.from_pretrained(folder)
  dtypes = {x.dtype for x in jax.tree.leaves(pipe.params)}
  assert dtypes == {jnp.dtype("bfloat16")} and pipe.dtype == "bfloat16"
  difference = pipe(**CALL).images[0].astype(int) - picture
  assert 0 < np.abs(difference).mean() < 0.05 * np.ptp(picture)


@pytest.mark.parametrize("name", ["bfloat16", jnp.bfloat16, "torch.bfloat16"])
def test_torch_dtype_is_taken_for_dtype(folder, name):
  pipe = LuminaPipeline.from_pretrained(
    folder, torch_dtype=name, vae=False, text_encoder=False
  )
  assert pipe.dtype == "bfloat16"


def test_one_at_a_time(folder, picture):
  """The language model and the network are never in memory together."""
  pipe = LuminaPipeline.from_pretrained(folder, one_at_a_time=True, **EXACT)
  encoder, seen = pipe.text_encoder, []
  load = encoder._load

  def watched():
    seen.append(("encoding", pipe.part.loaded))
    return load()

  encoder._load = watched

  def step(pipe, number, time, shown):
    seen.append(("sampling", encoder._params is not None))

  assert not pipe.part.loaded and encoder._params is None
  for _ in range(2):  # The second time nothing needs encoding.
    images = pipe(**CALL, callback_on_step_end=step).images
    np.testing.assert_array_equal(images[0], picture)
  pipe(**CALL | dict(prompt="fox"))
  samples = [("sampling", False)] * 4
  assert seen == [("encoding", False), *samples, ("encoding", False)]


def test_features_are_kept_in_a_cache(folder, tmp_path, picture):
  cache = tmp_path / "cache"
  pipe = LuminaPipeline.from_pretrained(folder, cache=cache, **EXACT)
  pipe(**CALL)
  assert len(list(cache.iterdir())) >= 2  # The prompt and "".
  again = LuminaPipeline.from_pretrained(folder, cache=cache, **EXACT)

  def refuse():
    raise AssertionError("the cache has them")

  again.text_encoder._load = refuse
  np.testing.assert_array_equal(again(**CALL).images[0], picture)


@pytest.mark.slow
@pytest.mark.long
def test_large_pictures_go_in_tiles(pipe):
  whole = pipe(**CALL, height=64, width=96).images[0]
  pipe.vae_tile = 32
  try:
    tiles = pipe(**CALL, height=64, width=96).images[0]
  finally:
    pipe.vae_tile = 0
  assert tiles.shape == whole.shape
  assert 0 < np.abs(tiles.astype(int) - whole).mean() < 0.2 * np.ptp(whole)


CODE = """
import sys
sys.path[:0] = ["tests", "tests/pretrained"]
import jax, numpy as np
from test_pretrained import CALL, EXACT
from lumina_jax import LuminaPipeline
from lumina_jax.parallel.mesh import MeshConfig, make_mesh
folder, found = sys.argv[1:]
degrees = dict(data=1, fsdp=2, context=2, tensor=2)
mesh = make_mesh(MeshConfig(**degrees))
pipe = LuminaPipeline.from_pretrained(folder, mesh=mesh, **EXACT)
kernel = pipe.params["backbone"]["blocks"]["feed_forward"]["gate"]["kernel"]
assert len(kernel.sharding.device_set) == 8
shard = kernel.addressable_shards[0].data
assert shard.size * 8 == kernel.size, (shard.shape, kernel.shape)
np.save(found, pipe(**CALL).images[0])
"""


@pytest.mark.slow
def test_sharded_over_devices_it_draws_the_same(folder, picture, tmp_path):
  found = tmp_path / "found.npy"
  done = subprocess.run(
    [sys.executable, "-c", CODE, str(folder), str(found)],
    cwd=ROOT,
    env=fake_devices(8),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  difference = np.load(found).astype(int) - picture
  assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    (dict(dtype="float16"), ValueError, "float16 overflows"),
    (dict(dtyp="float32"), ValueError, "did you mean 'dtype'"),
    (dict(variant="fp16"), ValueError, "variant: here use dtype"),
    (dict(vae="nowhere"), FileNotFoundError, "nowhere does not exist"),
    (dict(text_encoder="a/b/c"), FileNotFoundError, "a/b/c does not exist"),
    (dict(ema=False), FileNotFoundError, "holds one set of weights"),
    (dict(vae=True), ValueError, "vae = True"),
  ],
)
def test_wrong_options(folder, options, error, message):
  with pytest.raises(error, match=message):
    LuminaPipeline.from_pretrained(folder, **options)


def test_missing_parts_are_all_named(folder, tmp_path):
  partial = copy(folder, tmp_path / "partial", "vae", "tokenizer")
  with pytest.raises(FileNotFoundError, match="lacks vae/, tokenizer/"):
    LuminaPipeline.from_pretrained(partial)
  pipe = LuminaPipeline.from_pretrained(partial, vae=folder, tokenizer=folder)
  assert pipe(**CALL).images[0].shape == (16, 16, 3)


def test_an_index_that_leads_elsewhere(folder, tmp_path):
  there = copy(folder, tmp_path / "there")
  model = there / "text_encoder" / "model.safetensors"
  model.rename(tmp_path / "outside.safetensors")
  index = {"weight_map": {"model.norm.weight": "../../outside.safetensors"}}
  name = "model.safetensors.index.json"
  (there / "text_encoder" / name).write_text(json.dumps(index))
  with pytest.raises(ValueError, match="no weight_map to files beside it"):
    LuminaPipeline.from_pretrained(there)


def test_an_export_whose_config_is_broken(pipe, tmp_path):
  pipe.save_pretrained(tmp_path / "saved")
  (tmp_path / "saved" / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config\.json cannot be read"):
    LuminaPipeline.from_pretrained(tmp_path / "saved")


def test_folders_that_are_none(tmp_path):
  with pytest.raises(FileNotFoundError, match="holds no pipeline; looked for"):
    LuminaPipeline.from_pretrained(tmp_path)
  (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
  with pytest.raises(ValueError, match="a FluxPipeline; of diffusers' pipel"):
    LuminaPipeline.from_pretrained(tmp_path)


def test_the_original_names_what_it_does_not_say(tmp_path):
  cfg = tiny.NEXT
  file = tmp_path / "weights.safetensors"
  said = dict.fromkeys(("lm", "tokenizer_path", "vae"))
  save_pytorch(random_params(cfg), cfg, file, model_args=said)
  with pytest.raises(FileNotFoundError, match="say which text_encoder"):
    LuminaPipeline.from_pretrained(file)
  with pytest.raises(FileNotFoundError, match=r"which vae .* --ckpt_vae="):
    LuminaPipeline.from_pretrained(file, text_encoder=False)
  pipe = LuminaPipeline.from_pretrained(file, text_encoder=False, vae=False)
  assert pipe.sampling.height == 1024 // 8


def test_a_language_model_of_another_width(folder, tmp_path):
  other = copy(folder, tmp_path / "other", "model.safetensors")
  tiny.write_language(other / "text_encoder", {"hidden_size": 40})
  message = "of width 40; the network takes features of width 24"
  with pytest.raises(ValueError, match=message):
    LuminaPipeline.from_pretrained(other)


def test_an_autoencoder_of_other_channels(folder, tmp_path):
  vae = tiny.write_vae(tmp_path / "vae", latent_channels=16)
  message = "latents have 16 channels, the network draws 4"
  with pytest.raises(ValueError, match=message):
    LuminaPipeline.from_pretrained(folder, vae=vae)


def test_a_tokenizer_that_does_not_fit(folder, tmp_path):
  words = write_tokenizer(tmp_path / "words", vocab=tiny.VOCAB + 50)
  with pytest.raises(ValueError, match=r"up to 449 .* model has 400 rows"):
    LuminaPipeline.from_pretrained(folder, tokenizer=words)


def test_a_file_that_is_cut_short(folder, tmp_path):
  broken = copy(folder, tmp_path / "broken")
  path = broken / "text_encoder" / "model.safetensors"
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(ValueError, match="cut short"):
    LuminaPipeline.from_pretrained(broken)


def test_convert_carries_terms_along(folder, tmp_path):
  convert.convert(folder, tmp_path / "ours", "lumina_jax")
  assert load_weights(tmp_path / "ours")[0].text_width == tiny.WIDTH
  terms = tmp_path / "ours" / "LICENSE.md"
  assert terms.read_text() == "Terms of the network."
  # Over others' weights, the terms of these and no others.
  (terms.parent / "NOTICE").write_text("Terms of the others.")
  terms.write_text("Terms of the others.")
  convert.convert(folder, tmp_path / "ours", "lumina_jax", overwrite=True)
  assert terms.read_text() == "Terms of the network."
  assert not (terms.parent / "NOTICE").exists()
