"""An option and a group that only a subclass of SamplingOptions declares."""

import dataclasses
import json

import numpy as np
import pytest
from absl import flags
from support.pipelines import replaced

from lumina_jax.commands.flags import define_options, option_values
from lumina_jax.files import schema
from lumina_jax.sampling import overrides, provenance, run
from lumina_jax.sampling.options import SamplingOptions, option
from lumina_jax.sampling.overrides import override


@dataclasses.dataclass(frozen=True)
class Skipping:
  ratio: float = option("Share of the tokens that run.", 0.5)
  first: int = option("Step to begin at.", 0)

  def __post_init__(self):
    if not 0 < self.ratio <= 1:
      raise ValueError(f"ratio = {self.ratio}: must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class Window:
  tokens: int = option("Tokens of a window.")


@dataclasses.dataclass(frozen=True)
class MoreOptions(SamplingOptions):
  sharpness: float = option("How sharp.", 1.0, per_sample=True, alias="sharpen")
  ras: Skipping | None = option("Skips regions.", None)
  window: Window = option("Attends within windows.", Window(64))


REQUIRED = dict(
  solver="euler", num_inference_steps=2, guidance_scale=1.0, shift=1.0
)
DEFAULTS = MoreOptions(**REQUIRED)


@pytest.fixture
def parse_flags():
  """Words of a command as options, with flags of its own."""

  def parse(*words):
    values = flags.FlagValues()
    define_options(MoreOptions, values)
    values(["infer", *words])
    return option_values(MoreOptions, values)

  return parse


def test_keywords_include_it():
  new = set(overrides.names(MoreOptions)) - set(overrides.names())
  assert new == {"sharpness", "sharpen", "ras", "window"}


def test_flags_set_it(parse_flags):
  assert parse_flags() == {}
  found = parse_flags("--sharpen=2", "--sharpness=3", "--ras.ratio=0.25")
  assert found == {"sharpness": [2.0, 3.0], "ras": {"ratio": 0.25}}
  options = override(DEFAULTS, found)
  assert options.ras == Skipping(0.25) and options.window == Window(64)
  with pytest.raises(flags.IllegalFlagValueError, match=r"--ras\.first = '1\."):
    parse_flags("--ras.first=1.5")


def test_every_option_of_the_command_is_a_flag_with_its_help():
  values = flags.FlagValues()
  define_options(MoreOptions, values)
  for field in dataclasses.fields(MoreOptions):
    if field.name not in ("ras", "window"):
      assert field.metadata["help"] in values[field.name].help
  assert values["ras.ratio"].help == "Share of the tokens that run."


def test_a_call_changes_some_fields_of_a_group():
  late = dataclasses.replace(DEFAULTS, ras=Skipping(first=5))
  assert override(late, {"ras": {"ratio": 0.25}}).ras == Skipping(0.25, 5)
  assert override(late, {"ras": Skipping(0.25)}).ras == Skipping(0.25, 0)


def test_config_files_set_it():
  section = REQUIRED | {"sharpness": 2, "ras": {"first": 3}}
  expected = dataclasses.replace(DEFAULTS, sharpness=2.0, ras=Skipping(first=3))
  assert schema.parse(MoreOptions, section, "sampling") == expected
  assert schema.parse(MoreOptions, schema.to_dict(expected)) == expected


class Captured(Exception):
  """Ends a call before it samples."""


def test_calls_take_it_and_pass_groups_to_the_program(pixels, monkeypatch):
  def sample(params, inputs, *, program):
    raise Captured(program)

  monkeypatch.setattr(run.programs, "sample", sample)
  values = dataclasses.asdict(pixels.options)
  pipe = replaced(pixels)
  pipe.options = MoreOptions(**values)

  def groups(**call):
    with pytest.raises(Captured) as caught:
      pipe("7", output_type="latent", **call)
    return caught.value.args[0].groups

  assert groups(sharpen=2.0) == (Window(64),)
  skipping = groups(ras={"ratio": 0.25}, window=Window(8))
  assert skipping == (Skipping(0.25), Window(8))
  with pytest.raises(TypeError, match="did you mean 'sharpness'"):
    groups(sharpnes=2.0)
  with pytest.raises(TypeError, match="unexpected argument 'ras'"):
    pixels("7", ras={"ratio": 0.25})


def test_files_say_it(pixels):
  options = dataclasses.replace(
    MoreOptions(**dataclasses.asdict(pixels.options)),
    sharpness=2.0,
    ras=Skipping(0.25),
  )
  request = {"prompt": "7", "negative_prompt": "", "seed": 3}
  texts = provenance.metadata(
    pixels.components, options, {"model": "digits"}, request, 0, {"height": 8}
  )
  values = json.loads(texts["lumina_jax"])
  assert values["sharpness"] == 2.0
  assert values["ras"] == {"ratio": 0.25, "first": 0}
  # They rebuild the options, groups included; only images have a strength.
  kept = {k: v for k, v in values.items() if hasattr(options, k)}
  expected = dataclasses.replace(options, strength=0.6)
  assert schema.parse(MoreOptions, kept) == expected


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"ras": {"ratios": 0.25}}, r"key ras\.ratios; did you mean 'ratio'"),
    ({"ras": {"ratio": "half"}}, r"ras\.ratio = 'half' must be of type float"),
    ({"ras": {"ratio": 2.0}}, "ras: ratio = 2.0: must be above 0"),
    ({"ras": 0.25}, "ras must be a section of keys, not 0.25"),
    ({"window": {"tokens": 1.5}}, r"window\.tokens = 1\.5 must be of type int"),
    ({"sharpness": "much"}, "sharpness = 'much': must be a finite number"),
    ({"sharpness": 2, "sharpen": 2}, "sharpness and sharpen are the same"),
  ],
)
def test_values_that_do_not_fit_are_named(values, message):
  with pytest.raises(ValueError, match=message):
    override(DEFAULTS, values)


def test_a_value_for_each_prompt():
  given = {"sharpen": np.asarray([1.0, 2.0])}
  found = overrides.per_sample(override(DEFAULTS, given), given, 2)
  assert found["sharpness"] == [1.0, 2.0]
