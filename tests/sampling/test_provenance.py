"""Metadata of files: how a sample was made."""

import dataclasses
import json

import pytest
from support.configs import small_config, tiny_config

from lumina_jax.media import AUDIO, IMAGE
from lumina_jax.model.offload import Offloadable
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.provenance import metadata, public_name

MODEL = {"model": "someone/Ten-Classes", "vae": None}
REQUEST = {"prompt": "3 1", "negative_prompt": "", "seed": 5}


def components(medium, config):
  return Components(
    medium,
    config.network,
    Offloadable.pinned({}),
    config.sampling,
    config.sizes,
  )


DIGITS = components(IMAGE, small_config())
SIZES = {"height": 8, "width": 16}


def test_everything_that_makes_the_sample_again():
  options = dataclasses.replace(DIGITS.options, sigmas=(1.0, 0.5), shift=2.0)
  texts = metadata(DIGITS, options, MODEL, REQUEST, 1, SIZES)
  assert texts.keys() == {"parameters", "lumina_jax"}
  values = json.loads(texts["lumina_jax"])
  assert values["medium"] == "image" and values["number"] == 1
  assert values.items() >= {**MODEL, **REQUEST, **SIZES}.items()
  for field in dataclasses.fields(options):
    if field.name not in ("strength", "num_inference_steps"):
      expected = json.loads(json.dumps(getattr(options, field.name)))
      assert values[field.name] == expected
  # Steps as they were, of the levels in place of the schedule.
  assert values["num_inference_steps"] == 2
  assert texts["parameters"].splitlines() == [
    "3 1",
    "Steps: 2, Sampler: euler, CFG scale: 2, Shift: 2, Seed: 5, Size: 16x8, "
    "Model: Ten-Classes, Number: 1, Version: lumina_jax 0.1.0",
  ]


def test_negative_prompts_and_initial_images(tmp_path):
  image = tmp_path / "private" / "cat.png"
  image.parent.mkdir()
  image.touch()
  request = REQUEST | {"negative_prompt": "7", "image": str(image)}
  texts = metadata(DIGITS, DIGITS.options, MODEL, request, 0, SIZES)
  assert texts["parameters"].splitlines()[1] == "Negative prompt: 7"
  values = json.loads(texts["lumina_jax"])
  assert (values["image"], values["strength"]) == ("cat.png", 0.6)
  plain = metadata(DIGITS, DIGITS.options, MODEL, REQUEST, 0, SIZES)
  values = json.loads(plain["lumina_jax"])
  assert values["image"] is None and "strength" not in values


def test_sizes_are_those_of_the_medium():
  config = tiny_config("text_to_audio")
  sizes = {"audio_length_in_s": 1.28}
  audio = components(AUDIO, config)
  texts = metadata(audio, config.sampling, MODEL, REQUEST, 0, sizes)
  assert "Size: 1.28, " in texts["parameters"]
  values = json.loads(texts["lumina_jax"])
  assert values.items() >= {"medium": "audio", **sizes}.items()
  assert "height" not in values


@pytest.mark.parametrize(
  "name", [None, "someone/Ten-Classes", "nowhere/at/all"]
)
def test_names_that_are_no_folders_stay(name):
  assert public_name(name) == name


def test_folders_of_this_machine_are_left_out(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "weights").mkdir()
  assert public_name(str(tmp_path / "weights")) == "weights"
  assert public_name("~/weights") == "weights"
  monkeypatch.chdir(tmp_path / "weights")
  assert public_name(".") == public_name("../weights/") == "weights"
