"""Configs: every mistake is named, and a saved one comes back equal."""

import dataclasses
import json

import pytest

from configs import digits as config_file
from configs import imagenet, text_to_image
from data_pipelines.digits import DigitsConfig
from data_pipelines.synthetic import SyntheticConfig
from lumina_jax import config as configs
from lumina_jax.backbone import ModelConfig
from lumina_jax.config import differences, load, parse, save, to_dict
from lumina_jax.pretrained import export

every_variant = pytest.mark.parametrize("variant", ["flag", "next"])


def digits(variant="next"):
  return config_file.get_config(variant)


@every_variant
def test_configs_parse(variant):
  run = parse(digits(variant))
  assert isinstance(run.model, ModelConfig)
  assert run.model.raster == run.model.separators == (variant == "flag")
  assert run.network.model is run.model
  assert hash(run) == hash(parse(digits(variant)))


@every_variant
def test_a_plain_dict_parses_like_a_config(variant):
  assert parse(digits(variant).to_dict()) == parse(digits(variant))


@every_variant
def test_a_saved_config_comes_back_equal(variant, tmp_path):
  run = parse(digits(variant))
  save(run, tmp_path)
  assert load(tmp_path) == run
  assert [path.name for path in tmp_path.iterdir()] == [configs.FILE]


def test_a_saved_config_shows_every_value(tmp_path):
  run = parse(digits())
  save(run, tmp_path)
  saved = json.loads((tmp_path / configs.FILE).read_text())
  assert saved == to_dict(run)
  fields = {field.name for field in dataclasses.fields(ModelConfig)}
  assert set(saved["model"]) == fields


def test_saving_replaces_an_older_config(tmp_path):
  save(parse(digits("flag")), tmp_path)
  save(parse(digits("next")), tmp_path)
  assert load(tmp_path) == parse(digits("next"))


def test_a_folder_without_config_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    load(tmp_path)


@pytest.mark.parametrize(
  ("section", "key", "near"),
  [
    (None, "modle", "model"),
    ("model", "widht", "width"),
    ("optimizer", "learning_rte", "learning_rate"),
    ("sampling", "guidance", "guidance_scale"),
  ],
)
def test_an_unknown_key_suggests_the_near_one(section, key, near):
  values = digits().to_dict()
  (values[section] if section else values)[key] = 1
  name = f"config.{section}.{key}" if section else f"config.{key}"
  with pytest.raises(ValueError, match=f"{name}; did you mean '{near}'"):
    parse(values)


def test_an_unknown_key_without_a_near_one_is_named():
  values = digits().to_dict() | {"xyz": 1}
  with pytest.raises(ValueError, match=r"unknown key config\.xyz$"):
    parse(values)


@pytest.mark.parametrize(
  ("section", "key"),
  [(None, "seed"), (None, "data"), ("training", "steps"), ("model", "patch")],
)
def test_a_missing_key_is_named(section, key):
  values = digits().to_dict()
  del (values[section] if section else values)[key]
  name = f"config.{section}.{key}" if section else f"config.{key}"
  with pytest.raises(ValueError, match=f"missing key {name}$"):
    parse(values)


@pytest.mark.parametrize("value", [3, None, "next", [1, 2]])
def test_a_section_that_is_none_is_named(value):
  values = digits().to_dict() | {"model": value}
  with pytest.raises(ValueError, match=r"config\.model must be a section"):
    parse(values)


@pytest.mark.parametrize(
  ("section", "key", "value"),
  [
    ("model", "dtype", "float16"),
    ("time", "name", "lognorm"),
    ("training", "steps", 0),
    ("sampling", "solver", "eular"),
    ("data", "held_out", 2.0),
  ],
)
def test_a_bad_value_is_named_with_its_section(section, key, value):
  values = digits().to_dict()
  values[section][key] = value
  with pytest.raises(ValueError, match=rf"^config\.{section}: .*{value}"):
    parse(values)


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


def test_the_keys_say_which_data_are_meant():
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
def test_a_text_encoder_too_many_or_too_few_is_refused(family, change, message):
  values = family.get_config("tiny").to_dict() | change
  values["sampling"]["ladder"] = ((64, 64, 4),)
  with pytest.raises(ValueError, match=message):
    _ = parse(values).network


def test_text_and_classes_at_once_are_refused():
  values = text_to_image.get_config("tiny").to_dict()
  values["model"]["num_labels"] = 10
  with pytest.raises(ValueError, match="prompts are text or classes"):
    _ = parse(values).network


def test_configs_of_older_runs_still_parse():
  """Without the keys that networks have gained since."""
  shipped = json.loads((export.SHIPPED / export.CONFIG).read_text())
  shipped["model"].pop("routing", None)
  run = parse(digits().to_dict() | shipped)
  assert run.model.routing == () and isinstance(run.data, DigitsConfig)


def test_what_sampling_was_called_in_older_runs_is_read(tmp_path):
  """Its grid, and the rule of positions that the original calls NTK."""
  values = to_dict(parse(digits()))
  del values["sampling"]["schedule"]
  values["sampling"]["grid"] = "diffusers"
  values["sampling"]["beyond"] |= dict(rule="ntk", side=8, base_tokens=4)
  (tmp_path / "config.json").write_text(json.dumps(values))
  sampling = load(tmp_path).sampling
  assert sampling.schedule == "diffusers"
  assert sampling.beyond.rule == "ntk_plain"
  values["sampling"]["schedule"] = "uniform"
  with pytest.raises(ValueError, match=r"unknown key config.sampling.grid"):
    parse(values)


def test_routing_is_a_tuple_of_words():
  values = imagenet.get_config("moe_both_600m").to_dict()
  values["model"]["routing"] = ["time", "token"]
  assert parse(values) == parse(imagenet.get_config("moe_both_600m"))
  values["model"]["routing"] = "time"
  with pytest.raises(ValueError, match=r"model\.routing = 'time' must be of"):
    parse(values)
