"""Configs: mistakes are named, files and flags set every value."""

import dataclasses
import json
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict

from configs import digits as config_file
from configs import (
  imagenet,
  photographs,
  stages,
  text_to_audio,
  text_to_image,
  text_to_video,
)
from data_pipelines.digits import DigitsConfig
from data_pipelines.synthetic import SyntheticConfig
from lumina_jax.backbone import ModelConfig
from lumina_jax.commands import config_flag
from lumina_jax.files.schema import complete, differences, to_dict
from lumina_jax.training import run_config
from lumina_jax.training.run_config import RunConfig, load, parse, save

every_variant = pytest.mark.parametrize("variant", ["flag", "next"])


SHIPPED = [
  ("digits", "flag"),
  ("digits", "next"),
  ("photographs", ""),
  *(("imagenet", name) for name in imagenet.MODELS),
  *(("text_to_image", name) for name in text_to_image.MODELS),
  *(("text_to_video", name) for name in text_to_video.MODELS),
  *(("text_to_audio", name) for name in text_to_audio.MODELS),
  *(("stages", name) for name in ("flag_5b_512", "next_2b_256", "tiny_16")),
]
every_shipped = pytest.mark.parametrize(("family", "variant"), SHIPPED)
every_family = pytest.mark.parametrize(
  "family",
  [
    config_file,
    imagenet,
    photographs,
    stages,
    text_to_audio,
    text_to_image,
    text_to_video,
  ],
)


def digits(variant="next"):
  return config_file.get_config(variant)


@every_variant
def test_configs_parse(variant):
  run = parse(digits(variant))
  assert isinstance(run.model, ModelConfig)
  assert run.model.raster == run.model.separators == (variant == "flag")
  assert run.network.model is run.model
  assert hash(run) == hash(parse(digits(variant)))
  assert parse(digits(variant).to_dict()) == run


def test_a_saved_config_has_every_value_and_comes_back_equal(tmp_path):
  save(parse(digits("flag")), tmp_path)
  run = parse(digits())
  save(run, tmp_path)  # Replaces the first.
  assert load(tmp_path) == run
  assert [path.name for path in tmp_path.iterdir()] == [run_config.FILE]
  saved = json.loads((tmp_path / run_config.FILE).read_text())
  assert saved == to_dict(run)
  fields = {field.name for field in dataclasses.fields(ModelConfig)}
  assert set(saved["model"]) == fields


def test_a_folder_without_config_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    load(tmp_path)


def changed(section, key, value):
  """The digits with one value changed; DELETED removes the key."""
  values = digits().to_dict()
  target = values[section] if section else values
  if value is DELETED:
    del target[key]
  else:
    target[key] = value
  return values


DELETED = object()


@pytest.mark.parametrize(
  ("section", "key", "value", "message"),
  [
    (None, "modle", 1, r"config\.modle; did you mean 'model'"),
    ("model", "widht", 1, r"config\.model\.widht; did you mean 'width'"),
    ("sampling", "guidance", 1, r"guidance; did you mean 'guidance_scale'"),
    (None, "xyz", 1, r"unknown key config\.xyz$"),
    (None, "seed", DELETED, r"missing key config\.seed$"),
    (None, "data", DELETED, r"missing key config\.data$"),
    ("training", "steps", DELETED, r"missing key config\.training\.steps$"),
    (None, "model", 3, r"config\.model must be a section"),
    (None, "model", None, r"config\.model must be a section"),
    (None, "model", [1, 2], r"config\.model must be a section"),
    (None, "medium", "picture", r"unknown medium 'picture'"),
    ("model", "dtype", "float16", r"^config\.model: .*float16"),
    ("model", "patch", (4,), r"model\.patch = \(4,\) needs 2 values"),
    ("time", "name", "lognorm", r"^config\.time: .*lognorm"),
    ("training", "steps", 0, r"^config\.training: .*0"),
    ("training", "microbatches", 3, "does not divide into microbatches = 3"),
    ("training", "watchdog_seconds", -1, r"watchdog_seconds = -1\.0"),
    ("training", "sample_prompts", (), "sample_prompts is empty"),
    ("training", "log_every", 4, "must be a multiple of log_every = 4"),
    ("sampling", "solver", "eular", r"^config\.sampling: .*eular"),
    ("sizes", "rows", 0, r"^config\.sizes: .*rows = 0"),
    ("data", "held_out", 2.0, r"^config\.data: .*2\.0"),
    ("text_encoder", "max_words", 64, "max_words = 64 exceeds the 40 words"),
    ("objective", "path", "linaer", r"config\.objective: .*'linear'"),
    ("optimizer", "name", "moun", "unknown name 'moun'; did you mean 'muon'?"),
  ],
)
def test_invalid_values_are_named_with_their_section(
  section, key, value, message
):
  with pytest.raises(ValueError, match=message):
    parse(changed(section, key, value))


def test_widths_that_do_not_match_are_refused_before_training():
  values = digits().to_dict()
  values["text_encoder"]["width"] *= 2
  with pytest.raises(ValueError, match=r"model\.text_width = .* must equal"):
    _ = parse(values).network


def test_equal_configs_have_no_differences():
  assert differences(parse(digits()), parse(digits())) == []


def test_differences_name_exactly_the_changed_keys():
  values = digits().to_dict()
  values["seed"] = 7
  values["optimizer"]["learning_rate"] = 1e-4
  values["data"]["canvases"] = ((1, 1),)
  lines = differences(parse(digits()), parse(values))
  keys, changes = zip(*(line.split(": ") for line in lines), strict=True)
  assert keys == ("data.canvases", "optimizer.learning_rate", "seed")
  assert [change.split(" -> ")[1] for change in changes] == [
    "[[1, 1]]",
    "0.0001",
    "7",
  ]
  assert changes[2] == "0 -> 7"


def test_the_variants_differ_in_the_model_only():
  lines = differences(parse(digits("flag")), parse(digits("next")))
  names = {line.split(":")[0] for line in lines}
  assert names == {
    f"model.{name}"
    for name in (
      "raster",
      "separators",
      "sandwich",
      "shift",
      "tanh_gate",
      "final_shift",
    )
  }


def test_an_unknown_variant_is_refused():
  with pytest.raises(ValueError, match=r"'nxt'.*'next'"):
    config_file.get_config("nxt")


def test_the_keys_select_the_kind_of_data():
  assert isinstance(parse(digits()).data, DigitsConfig)
  values = imagenet.get_config("tiny").to_dict()
  assert isinstance(parse(values).data, SyntheticConfig)
  values["data"]["clases"] = values["data"].pop("classes")
  with pytest.raises(ValueError, match=r"data\.clases; did you mean 'classes'"):
    parse(values)


@pytest.mark.parametrize("absent", [True, False])
def test_without_text_encoder_prompts_are_classes(absent):
  values = imagenet.get_config("tiny").to_dict()
  assert "text_encoder" not in values
  run = parse(values if absent else values | {"text_encoder": None})
  assert run.text_encoder is None
  assert to_dict(run)["text_encoder"] is None
  assert run.network.tokenize("7").tolist() == [[7]]


@pytest.mark.parametrize(
  ("family", "change", "message"),
  [
    (text_to_image, dict(text_encoder=None), "text_encoder.width = 0"),
    (
      imagenet,
      dict(text_encoder=dict(width=8)),
      r"text_width = 0 must equal text_encoder\.width = 8",
    ),
  ],
)
def test_a_superfluous_or_missing_text_encoder_is_refused(
  family, change, message
):
  values = family.get_config("tiny").to_dict() | change
  values["sizes"]["ladder"] = ((64, 64, 4),)
  with pytest.raises(ValueError, match=message):
    _ = parse(values).network


def test_text_and_classes_at_once_are_refused():
  values = text_to_image.get_config("tiny").to_dict()
  values["model"]["num_labels"] = 10
  with pytest.raises(ValueError, match="prompts are text or classes"):
    _ = parse(values).network


def test_routing_is_a_tuple_of_names():
  values = imagenet.get_config("moe_both_600m").to_dict()
  values["model"]["routing"] = ["time", "token"]
  assert parse(values) == parse(imagenet.get_config("moe_both_600m"))
  values["model"]["routing"] = "time"
  with pytest.raises(ValueError, match=r"model\.routing = 'time' must be of"):
    parse(values)


@pytest.fixture
def flagged(root, monkeypatch):
  """The config of a command line."""

  def read(file, *overrides):
    words = [f"--config.{override}" for override in overrides]
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["train", f"--config={file}", *words])
    values = flags.FlagValues()
    config_flag.define("configs/digits.py", values)
    values(sys.argv)
    return values.config

  return read


def leaves(values, prefix=""):
  """All values by name, without sections and None."""
  found = {}
  for key, value in values.items():
    if isinstance(value, dict):
      found |= leaves(value, f"{prefix}{key}.")
    elif value is not None:
      found[prefix + key] = value
  return found


def another(value):
  """Another value of the same type."""
  if isinstance(value, bool):
    return not value
  return (*value, "x") if isinstance(value, tuple) else value + type(value)(1)


@every_shipped
def test_every_field_can_be_set_on_the_command_line(flagged, family, variant):
  file = f"configs/{family}.py{variant and ':'}{variant}"
  run = parse(flagged(file))
  wanted = {
    key: another(value)
    for key, value in leaves(dataclasses.asdict(run)).items()
  }
  assert len(wanted) > 80
  config = flagged(file, *(f"{key}={value}" for key, value in wanted.items()))
  assert leaves(config.to_dict()) == wanted


@pytest.mark.parametrize(
  ("override", "value"),
  [
    ("training.watchdog_seconds=0", 0.0),
    ("optimizer.clip=3", 3.0),
    ("optimizer.momentum=0.9", 0.9),
    ("training.max_skipped=20", 20),
    ("init_strict=False", False),
    ("optimizer.decay_vectors=false", False),
    ("optimizer.frozen=('backbone/patch_embed',)", ("backbone/patch_embed",)),
    ("optimizer.frozen=backbone/patch_embed", ("backbone/patch_embed",)),
    ("optimizer.groups=(('text', 0.1, 0),)", (("text", 0.1, 0),)),
    ("model.routing=('time', 'token')", ("time", "token")),
    ("sampling.guidance_interval=(0, 0.3)", (0, 0.3)),
    ("encoders.vae=folder", "folder"),
  ],
)
def test_flags_have_the_type_of_the_value_that_they_replace(
  flagged, override, value
):
  config = flagged("configs/imagenet.py:tiny", override)
  read = leaves(config.to_dict())[override.partition("=")[0]]
  assert read == value and type(read) is type(value)


def test_help_of_a_command_lists_the_flag_as_its_own():
  values = flags.FlagValues()
  config_flag.define("configs/digits.py", values)
  (flag,) = values.get_key_flags_for_module(__name__)
  assert flag.name == "config" and "configs/digits.py" in flag.help


@pytest.mark.parametrize(
  ("key", "near"),
  [
    ("training.max_skiped", "max_skipped"),
    ("encoders.va", "vae"),
    ("init_stric", "init_strict"),
  ],
)
def test_a_mistyped_flag_names_the_nearest_key(flagged, key, near):
  with pytest.raises(AttributeError, match=f'Did you mean "{near}"'):
    flagged("configs/digits.py", f"{key}=1")


@every_family
def test_completing_a_config_changes_nothing_of_the_run(family):
  config = family.get_config()
  run = parse(config)
  assert complete(RunConfig, config) is config and parse(config) == run
  whole = config.to_dict()
  assert complete(RunConfig, config).to_dict() == whole


def test_completing_adds_no_optional_section():
  config = complete(RunConfig, imagenet.get_config("tiny"))
  assert "text_encoder" not in config and "trained" not in config.sizes
  config.text_encoder = config.sizes.trained = None
  completed = complete(RunConfig, config)
  assert completed.text_encoder is completed.sizes.trained is None


def test_a_completed_config_is_locked_as_before():
  assert not complete(RunConfig, digits()).is_locked
  config = complete(RunConfig, digits().lock())
  assert config.is_locked and config.encoders.is_locked


def test_completing_leaves_mistakes_to_the_parser():
  values = digits().to_dict()
  del values["training"]["steps"]
  config = complete(RunConfig, ConfigDict(values))
  assert config.training.max_skipped == 10
  with pytest.raises(ValueError, match=r"missing key config\.training\.steps"):
    parse(config)
  config = complete(
    RunConfig, ConfigDict(digits().to_dict() | {"model": "next"})
  )
  with pytest.raises(ValueError, match=r"config\.model must be a section"):
    parse(config)
