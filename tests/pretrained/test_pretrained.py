"""from_pretrained and save_pretrained: every kind of folder, both ways."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_pipeline as tiny
from support.families import FAMILIES, random_params
from support.tokenizer import write_tokenizer

from lumina_jax import LuminaPipeline
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.interop import save_pytorch

EXACT = dict(dtype="float32")
CALL = dict(
  prompt=tiny.PROMPT, seed=1, num_inference_steps=2, output_type="uint8"
)


@pytest.fixture(scope="module")
def folder(diffusers_folder):
  return diffusers_folder


@pytest.fixture(scope="module")
def pipe(folder):
  return LuminaPipeline.from_pretrained(folder, **EXACT)


@pytest.fixture(scope="module")
def expected(pipe):
  (image,) = pipe(**CALL).images
  assert np.ptp(image) > 100
  return image


def copy(folder, to, *left_out):
  shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*left_out))
  return to


def assert_generates(pipe, expected):
  np.testing.assert_array_equal(pipe(**CALL).images[0], expected)


def test_a_diffusers_folder(pipe, expected):
  assert expected.shape == (16, 16, 3)  # The trained square, in pixels.
  assert pipe.dtype == "float32"
  assert pipe.network.text_encoder == TextFeaturesConfig(tiny.WIDTH)
  assert None not in (pipe.vae, pipe.text_encoder, pipe.tokenizer)
  latents = np.ones((1, 8, 8, 4), np.float32)
  text = np.ones((1, 3, tiny.WIDTH), np.float32)
  velocity = pipe.transformer(latents, 0.5, text=text)
  assert velocity.shape == latents.shape and np.ptp(velocity) > 0.1


def test_a_folder_of_the_original_with_encoders_elsewhere(
  folder, tmp_path, expected
):
  """Passed, or named by the folder's arguments."""
  original = tiny.write_original(tmp_path / "original")
  pipe = LuminaPipeline.from_pretrained(
    original, vae=folder, text_encoder=folder, **EXACT
  )
  assert_generates(pipe, expected)
  model = copy(folder / "text_encoder", tmp_path / "gemma")
  args = dict(lm=str(model), vae=str(folder / "vae"))
  tokenizer = str(folder / "tokenizer")
  original = tiny.write_original(
    tmp_path / "named", **args, tokenizer_path=tokenizer
  )
  assert_generates(LuminaPipeline.from_pretrained(original, **EXACT), expected)
  # The tokenizer may lie beside the language model.
  shutil.copytree(tokenizer, model, dirs_exist_ok=True)
  args["tokenizer_path"] = None
  original = tiny.write_original(tmp_path / "beside", **args)
  assert_generates(LuminaPipeline.from_pretrained(original, **EXACT), expected)
  unknown = tiny.write_original(tmp_path / "unknown", **args | dict(vae="x"))
  with pytest.raises(FileNotFoundError, match="x does not exist"):
    LuminaPipeline.from_pretrained(unknown)


def test_weights_alone_of_diffusers(folder, expected):
  pipe = LuminaPipeline.from_pretrained(
    folder / "transformer", vae=folder / "vae", text_encoder=folder, **EXACT
  )
  # It does not say its trained size: 1024 pixels unless a call names another.
  image = pipe(**CALL, height=16, width=16).images[0]
  assert image.shape == expected.shape
  assert pipe.components.sizes.trained.side == 1024 // tiny.FACTOR


@pytest.mark.parametrize("layout", ["lumina_jax", "diffusers"])
def test_a_saved_pipeline_generates_the_same_and_keeps_its_licences(
  pipe, expected, tmp_path, layout
):
  saved = tmp_path / "saved"
  pipe.save_pretrained(saved, layout=layout, dtype="float32")
  again = LuminaPipeline.from_pretrained(saved, **EXACT)
  assert again.options == pipe.options
  assert again.components.sizes == pipe.components.sizes
  assert_generates(again, expected)
  licences = {
    "LICENSE.md": "Terms of the network.",
    "text_encoder/NOTICE": "Terms of the words.",
    "vae/LICENSE": "Terms of the pixels.",
  }
  for name, text in licences.items():
    assert (saved / name).read_text() == text
  # Saved again to its folder; never by accident.
  with pytest.raises(FileExistsError, match="saved exists"):
    again.save_pretrained(saved, layout=layout)
  again.save_pretrained(saved, layout=layout, overwrite=True)
  assert all((saved / name).exists() for name in licences)


def test_a_pipeline_saved_over_its_own_folder_still_generates(
  folder, tmp_path, monkeypatch
):
  """Also from a relative path, with components that load when needed."""
  own = copy(folder, tmp_path / "own")
  monkeypatch.chdir(tmp_path)
  pipe = LuminaPipeline.from_pretrained("own", one_at_a_time=True, **EXACT)
  (before,) = pipe(**CALL).images
  monkeypatch.chdir("/")
  pipe.save_pretrained(own, overwrite=True)
  assert not (own / "transformer").exists()
  assert_generates(pipe, before)
  assert np.ptp(pipe(**CALL | dict(prompt="fox")).images[0]) > 50


def test_files_of_others_are_never_overwritten(pipe, folder, tmp_path):
  for number, name in enumerate(("vae/notes.txt", "notes.txt")):
    there = copy(folder, tmp_path / f"{number}")
    (there / name).write_text("precious")
    message = rf"holds more than weights \({name.replace('.', '[.]')}\)"
    with pytest.raises(FileExistsError, match=message):
      pipe.save_pretrained(there, layout="diffusers", overwrite=True)
    assert (there / name).read_text() == "precious"
  model = copy(folder / "text_encoder", tmp_path / "model", "NOTICE")
  with pytest.raises(FileExistsError, match="is not a pipeline"):
    pipe.save_pretrained(model, overwrite=True)


@pytest.mark.parametrize("path", ["gs://bucket/pipe", "pipe.pt"])
def test_only_local_folders_can_be_written(pipe, path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"buckets are not|looks like a file"):
    pipe.save_pretrained(path)
  assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(pipe, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match="cannot make the folder"):
    pipe.save_pretrained(tmp_path / "file" / "pipe")


def test_a_language_model_passed_as_an_object_is_not_saved(
  pipe, folder, tmp_path, caplog
):
  other = LuminaPipeline.from_pretrained(
    folder, text_encoder=pipe.text_encoder, **EXACT
  )
  other.save_pretrained(tmp_path / "saved")
  assert "gets no text_encoder/" in caplog.text


def test_a_save_that_fails_leaves_the_old_files(pipe, tmp_path, monkeypatch):
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


def test_only_our_layout_may_lack_a_language_model(folder, tmp_path):
  pipe = LuminaPipeline.from_pretrained(folder, text_encoder=False, **EXACT)
  with pytest.raises(ValueError, match="needs a text_encoder, and this pipel"):
    pipe.save_pretrained(tmp_path / "saved", layout="diffusers")
  assert not (tmp_path / "saved").exists()
  pipe.save_pretrained(tmp_path / "own")
  again = LuminaPipeline.from_pretrained(
    tmp_path / "own", text_encoder=folder, **EXACT
  )
  assert again(**CALL).images[0].shape == (16, 16, 3)


@pytest.mark.long
def test_flag_dit_reads_llama(folder, tmp_path):
  original = tiny.write_original(tmp_path / "flag", tiny.FLAG)
  words = write_tokenizer(tmp_path / "llama", "llama", vocab=tiny.VOCAB)
  tiny.write_language(tmp_path / "llama", tiny.LLAMA)
  pipe = LuminaPipeline.from_pretrained(
    original, vae=folder, text_encoder=words, **EXACT
  )
  assert pipe.network.text_encoder == TextFeaturesConfig(
    tiny.WIDTH, hidden="last", max_tokens=128, add_eos=True
  )
  assert pipe.options.rope_scaling == "ntk_plain"
  assert pipe.components.sizes.trained.tokens == 4 * 4 + 2 * 4
  assert np.ptp(pipe(**CALL, height=16, width=24).images[0]) > 20
  with pytest.raises(
    ValueError, match=r"text-to-image Next-DiT; .* 'lumina_jax'"
  ):
    pipe.save_pretrained(tmp_path / "saved", layout="diffusers")


@pytest.mark.long
def test_a_network_of_classes_with_an_autoencoder(folder, tmp_path):
  cfg = FAMILIES["next_imagenet"]
  original = tiny.write_original(tmp_path / "classes", cfg, n_heads=cfg.heads)
  pipe = LuminaPipeline.from_pretrained(original, vae=folder, **EXACT)
  images = pipe(["7", ""], num_inference_steps=2, output_type="np").images
  assert images[0].shape == (16, 16, 3) and images[0].min() >= 0
  assert pipe.text_encoder is None


@pytest.mark.long
def test_bfloat16_is_the_default_and_close(folder, expected):
  pipe = LuminaPipeline.from_pretrained(folder)
  dtypes = {x.dtype for x in jax.tree.leaves(pipe.params)}
  assert dtypes == {jnp.dtype("bfloat16")} and pipe.dtype == "bfloat16"
  difference = pipe(**CALL).images[0].astype(int) - expected
  assert 0 < np.abs(difference).mean() < 0.05 * np.ptp(expected)


def test_torch_dtype_is_an_alias_of_dtype(folder):
  for name in ("bfloat16", jnp.bfloat16, "torch.bfloat16"):
    pipe = LuminaPipeline.from_pretrained(
      folder, torch_dtype=name, vae=False, text_encoder=False
    )
    assert pipe.dtype == "bfloat16"


def test_one_at_a_time(folder, expected):
  """The language model and the network are never on the device together."""
  pipe = LuminaPipeline.from_pretrained(folder, one_at_a_time=True, **EXACT)
  encoder, events = pipe.text_encoder, []
  load = encoder._load

  def watched():
    events.append(("encoding", pipe.weights.loaded))
    return load()

  encoder._load = watched

  def step(pipe, number, time, tensors):
    events.append(("sampling", encoder._params is not None))

  assert not pipe.weights.loaded and encoder._params is None
  for _ in range(2):  # The second time nothing needs encoding.
    images = pipe(**CALL, callback_on_step_end=step).images
    np.testing.assert_array_equal(images[0], expected)
  pipe(**CALL | dict(prompt="fox"))
  samples = [("sampling", False)] * 4
  assert events == [("encoding", False), *samples, ("encoding", False)]


def test_features_are_cached_in_a_folder(folder, tmp_path, expected):
  cache = tmp_path / "cache"
  pipe = LuminaPipeline.from_pretrained(folder, cache=cache, **EXACT)
  pipe(**CALL)
  assert len(list(cache.iterdir())) >= 2  # The prompt and "".
  again = LuminaPipeline.from_pretrained(folder, cache=cache, **EXACT)

  def load():
    raise AssertionError("the features are cached")

  again.text_encoder._load = load
  assert_generates(again, expected)


@pytest.mark.long
def test_large_images_are_decoded_in_tiles(pipe):
  whole = pipe(**CALL, height=64, width=96).images[0]
  pipe.vae.tile = 32
  try:
    tiles = pipe(**CALL, height=64, width=96).images[0]
  finally:
    pipe.vae.tile = None
  assert tiles.shape == whole.shape
  assert 0 < np.abs(tiles.astype(int) - whole).mean() < 0.2 * np.ptp(whole)


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    (dict(dtype="float16"), ValueError, "float16 overflows"),
    (dict(dtyp="float32"), ValueError, "did you mean 'dtype'"),
    (dict(variant="fp16"), ValueError, "variant: use dtype"),
    (dict(vae="nowhere"), FileNotFoundError, "nowhere does not exist"),
    (dict(text_encoder="a/b/c"), FileNotFoundError, "a/b/c does not exist"),
    (dict(ema=False), FileNotFoundError, "holds one set of weights"),
    (dict(vae=True), ValueError, "vae = True"),
    (dict(dtype=3), ValueError, "dtype 3: use one of float32, bfloat16"),
    (dict(ema="no"), ValueError, "ema = 'no' must be of type bool"),
    (dict(one_at_a_time="no"), ValueError, "one_at_a_time = 'no' must be"),
    (dict(vae=3), ValueError, "vae = 3: must be a folder or a hub name"),
    (dict(vae=b"x"), ValueError, "vae = b'x': must be a folder"),
    (dict(text_encoder=3), ValueError, "text_encoder = 3: must be a folder"),
    (dict(cache=3), ValueError, "cache = 3: must be a folder"),
    (dict(mesh=3), ValueError, r"mesh = 3: must be a jax\.sharding\.Mesh"),
  ],
)
def test_options_that_do_not_fit_are_named(folder, options, error, message):
  with pytest.raises(error, match=message):
    LuminaPipeline.from_pretrained(folder, **options)


def test_a_path_of_another_type_is_named():
  with pytest.raises(ValueError, match="path = 3: must be a folder"):
    LuminaPipeline.from_pretrained(3)


def test_all_missing_components_are_named(folder, tmp_path):
  partial = copy(folder, tmp_path / "partial", "vae", "tokenizer")
  with pytest.raises(FileNotFoundError, match="lacks vae/, tokenizer/"):
    LuminaPipeline.from_pretrained(partial)
  pipe = LuminaPipeline.from_pretrained(
    partial, vae=folder, tokenizer=folder, **EXACT
  )
  assert pipe(**CALL).images[0].shape == (16, 16, 3)


def with_index_outside(folder):
  model = folder / "text_encoder" / "model.safetensors"
  model.rename(folder.parent / "outside.safetensors")
  index = {"weight_map": {"model.norm.weight": "../../outside.safetensors"}}
  name = "model.safetensors.index.json"
  (folder / "text_encoder" / name).write_text(json.dumps(index))


def with_half_a_language_model(folder):
  path = folder / "text_encoder" / "model.safetensors"
  path.write_bytes(path.read_bytes()[:1000])


def with_a_wider_language_model(folder):
  tiny.write_language(folder / "text_encoder", {"hidden_size": 40})


def with_other_channels(folder):
  shutil.rmtree(folder / "vae")
  tiny.write_vae(folder / "vae", latent_channels=16)


def with_more_words(folder):
  write_tokenizer(folder / "tokenizer", vocab=tiny.VOCAB + 50)


def with_another_class(folder):
  index = '{"_class_name": "FluxPipeline"}'
  (folder / "model_index.json").write_text(index)


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (with_index_outside, "no weight_map to files beside it"),
    (with_half_a_language_model, "cut short"),
    (with_a_wider_language_model, "of width 40; the network takes features of"),
    (with_other_channels, "latents have 16 channels, the network generates 4"),
    (with_more_words, r"449.* model has .*400"),
    (with_another_class, "is a FluxPipeline; of the diffusers pipelines"),
  ],
)
def test_folders_that_do_not_fit_are_named(folder, tmp_path, spoil, message):
  there = copy(folder, tmp_path / "there")
  spoil(there)
  with pytest.raises(ValueError, match=message):
    LuminaPipeline.from_pretrained(there)


def test_a_broken_config_of_an_export_is_named(pipe, tmp_path):
  pipe.save_pretrained(tmp_path / "saved")
  (tmp_path / "saved" / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config\.json cannot be read"):
    LuminaPipeline.from_pretrained(tmp_path / "saved")


def test_a_folder_that_is_no_pipeline(tmp_path):
  message = "is not a pipeline; looked for"
  with pytest.raises(FileNotFoundError, match=message):
    LuminaPipeline.from_pretrained(tmp_path)


def test_encoders_that_the_original_does_not_name_are_requested(tmp_path):
  cfg = tiny.NEXT
  file = tmp_path / "weights.safetensors"
  args = dict.fromkeys(("lm", "tokenizer_path", "vae"))
  save_pytorch(random_params(cfg), cfg, file, model_args=args)
  message = "does not name the text_encoder .*infer --text_encoder="
  with pytest.raises(FileNotFoundError, match=message):
    LuminaPipeline.from_pretrained(file)
  with pytest.raises(FileNotFoundError, match=r"name the vae .*--vae="):
    LuminaPipeline.from_pretrained(file, text_encoder=False)
  pipe = LuminaPipeline.from_pretrained(file, text_encoder=False, vae=False)
  assert pipe.components.sizes.default == (1024 // 8, 1024 // 8)
