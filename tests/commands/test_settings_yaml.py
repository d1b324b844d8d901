"""The original's settings.yaml: values, tolerated mistakes, refusals."""

import dataclasses

import pytest

from lumina_jax.commands import settings_yaml as settings
from lumina_jax.commands.settings import NO_SCALING, Settings
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig, TrainedSize

# As the original ships it for Next-DiT.
WHOLE = """
- settings:

  model:
    ckpt: ""
    ckpt_lm: "/models/gemma"
    token: ""

  transport:
    path_type: "Linear"             # option: ["Linear", "GVP", "VP"]
    prediction: "velocity"
    loss_weight: None
    sample_eps: 0.1
    train_eps: 0.2

  ode:
    atol: 1.0e-6
    rtol: 1.0e-3
    reverse: false
    likelihood: false

  sde:
    sampling_method: "Euler"
    last_step: None

  infer:
      resolution: "(Extrapolation) 1024x2048"
      num_sampling_steps: 60        # range: 1-1000
      cfg_scale: 4.
      solver: "euler"
      t_shift: 4
      scaling_method: "Time-aware"
      scaling_watershed: 0.3
      proportional_attn: true
      seed: 0
"""
VALUES = Settings(
  ckpt_lm="/models/gemma",
  resolution=(1024, 2048),
  num_sampling_steps=60,
  cfg_scale=4.0,
  solver="euler",
  t_shift=4.0,
  seed=0,
  proportional_attn=True,
  scaling_method="Time-aware",
  scaling_watershed=0.3,
  atol=1e-6,
  rtol=1e-3,
)


def read(tmp_path, text):
  path = tmp_path / "settings.yaml"
  path.write_text(text)
  return settings.read(path)


def of(section, **values):
  return settings.parse([{section: values}])


def test_the_file_of_the_original_is_read_without_a_remark(tmp_path):
  assert read(tmp_path, WHOLE) == (VALUES, [])
  # Sections indented below their heading are the same to a reader.
  lines = WHOLE.splitlines()
  deeper = lines[:2] + ["  " + line for line in lines[2:]]
  assert read(tmp_path, "\n".join(deeper)) == (VALUES, [])


def test_points_are_one_more_than_steps():
  two = Settings(num_sampling_steps=2)
  values, _ = two.option_values(NEXT, TRAINED, {})
  assert values == {"num_inference_steps": 1}
  with pytest.raises(ValueError, match="N - 1 steps; use at least 2"):
    Settings(num_sampling_steps=1)


@pytest.mark.parametrize(
  ("old", "new", "remark"),
  [
    (
      "scaling_watershed",
      "scale_watershed",
      "infer.scale_watershed is read as infer.scaling_watershed",
    ),
    ("1.0e-6", "1e-6", "ode.atol: text is read as a number"),
    ("- settings:", "  settings:", "a mapping is read as the list of one"),
    ('token: ""', "token: None", "model.token: None is read as not given"),
    ("seed: 0", "seed: '0'", "infer.seed: text is read as a number"),
    (
      "seed: 0",
      "seed: 0\n      num_sampling_step: 3",
      "infer.num_sampling_step is unknown and not used; did you mean "
      "'infer.num_sampling_steps'?",
    ),
    ('token: ""', "solver: rk4", "model.solver is unknown .* 'infer.solver'?"),
    ("  sde:", "  sda:", "sda is unknown and not used; did you mean 'sde'?"),
  ],
)
def test_tolerated_mistakes_get_one_remark(tmp_path, old, new, remark):
  assert old in WHOLE
  found, remarks = read(tmp_path, WHOLE.replace(old, new))
  assert found == VALUES
  assert len(remarks) == 1
  start = remark.partition(" .* ")
  assert remarks[0].startswith(start[0]) and start[2] in remarks[0]


def test_tolerances_are_for_the_solver_that_knows_them():
  found, remarks = settings.parse(
    [{"infer": {"solver": "dopri5"}, "ode": {"rtol": 0.1, "atol": 1e-6}}]
  )
  assert found == Settings(solver="dopri5", rtol=0.1, atol=1e-6)
  assert not remarks


@pytest.mark.parametrize(
  ("theirs", "ours"), [("rk4", "rk4_38"), ("heun2", "heun"), ("heun3", "heun3")]
)
def test_solvers_have_the_names_of_torchdiffeq(theirs, ours):
  assert of("infer", solver=theirs)[0].solver == ours


@pytest.mark.parametrize(
  ("section", "values", "message"),
  [
    ("transport", dict(path_type="GVP"), "path_type = GVP: .* write Linear"),
    ("transport", dict(prediction="score"), "= score: .* write velocity"),
    ("ode", dict(reverse=True), "ode.reverse = True: .* write false"),
    ("ode", dict(likelihood="true"), "ode.likelihood = True"),
    ("ode", dict(atol="small"), "ode.atol = 'small': must be a finite number"),
    ("infer", dict(solver="dopri8"), "'dopri8' is not available; use dopri5"),
    ("infer", dict(solver="midpiont"), "did you mean 'midpoint'"),
    ("infer", dict(seed=1.5), "infer.seed = 1.5: must be a whole number"),
    ("infer", dict(seed=True), "infer.seed = True: must be a whole number"),
    ("infer", dict(proportional_attn="maybe"), "expected true or false"),
    ("infer", dict(scaling_method="NTK"), "use Time-aware or None"),
    ("infer", dict(scaling_watershed=3), "must be a time from 0 to 1"),
    ("infer", dict(resolution=1024), "infer.resolution = 1024: write width"),
    (
      "infer",
      dict(scale_watershed=0.1, scaling_watershed=0.2),
      "is given twice, 0.1 and 0.2",
    ),
    ("model", dict(ckpt=7), "model.ckpt = 7 must be of type str"),
  ],
)
def test_unsupported_values_are_refused(section, values, message):
  with pytest.raises(ValueError, match=message):
    of(section, **values)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "expected a list of one mapping .* found None"),
    ("- 3", "expected sections of keys, found 3"),
    ("- infer: 3", "infer = 3: expected keys"),
    ("- infer: [", "is not YAML"),
  ],
)
def test_other_files_are_named(tmp_path, text, message):
  with pytest.raises(ValueError, match=message) as error:
    read(tmp_path, text)
  assert str(tmp_path / "settings.yaml") in str(error.value)
  with pytest.raises(OSError, match=r"nowhere\.yaml cannot be read: No such"):
    settings.read(tmp_path / "nowhere.yaml")


def test_scaling_can_be_switched_off_in_two_ways():
  for value in (None, "None"):
    found, remarks = of("infer", scaling_method=value)
    assert found == Settings(scaling_method=NO_SCALING)
    assert not remarks


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("1024x512", (1024, 512)),
    (" 1024 X 512 ", (1024, 512)),
    ("1024:1536x1024", (1536, 1024)),
    ("(Extrapolation) 1664x1664", (1664, 1664)),
  ],
)
def test_resolutions_are_width_and_height(text, size):
  assert settings.resolution(text, "--resolution") == size


@pytest.mark.parametrize("text", ["1024", "axb", "1024x", "-8x8", "8x8x8", ""])
def test_other_resolutions_are_refused(text):
  with pytest.raises(ValueError, match=r"--resolution = .*as 1024x512"):
    settings.resolution(text, "--resolution")


def test_a_token_is_not_shown():
  assert "secret" not in repr(dataclasses.replace(VALUES, token="secret"))


NEXT = SamplingOptions(
  "midpoint", 20, 4.0, 4.0,
  rope_scaling="watershed", proportional_attention=True,
)  # fmt: skip
FLAG = dataclasses.replace(NEXT, rope_scaling="ntk_plain")
PLAIN = dataclasses.replace(
  NEXT, rope_scaling="none", proportional_attention=False
)
TRAINED = SizeConfig((16, 16), trained=TrainedSize(16, 64))
UNKNOWN = SizeConfig((16, 16))


@pytest.mark.parametrize(
  ("settings", "defaults", "flags", "values", "remark"),
  [
    # Values of the file, and flags above them.
    (dict(cfg_scale=3.0, t_shift=2.0), NEXT, {},
     {"guidance_scale": 3.0, "shift": 2.0}, None),
    (dict(num_sampling_steps=4), NEXT, {}, {"num_inference_steps": 3}, None),
    (dict(solver="euler"), NEXT, {"solver": "ab2"}, {"solver": "ab2"}, None),
    # Scaling off, in the words of either family.
    (dict(scaling_method=NO_SCALING), NEXT, {}, {"rope_scaling": "none"}, None),
    (dict(ntk_scaling=False), FLAG, {}, {"rope_scaling": "none"}, None),
    (dict(ntk_scaling=True), FLAG, {}, {}, None),
    (dict(scaling_method=NO_SCALING), NEXT, {"rope_scaling": "yarn"},
     {"rope_scaling": "yarn"}, "scaling_method: this network has no such"),
    # Settings of the other family warn.
    (dict(ntk_scaling=False), NEXT, {}, {}, "ntk_scaling: this network has no"),
    (dict(scaling_watershed=0.6), FLAG, {}, {}, "scaling_watershed: this"),
    (dict(scaling_watershed=0.6), NEXT, {}, {"scaling_watershed": 0.6}, None),
    (dict(scaling_watershed=0.6), FLAG, {"rope_scaling": "watershed"},
     {"rope_scaling": "watershed", "scaling_watershed": 0.6}, None),
    (dict(proportional_attn=False), NEXT, {},
     {"proportional_attention": False}, None),
    # Tolerances are for dopri5; those that every file has are no remark.
    (dict(rtol=1e-3, atol=1e-6), NEXT, {}, {}, None),
    (dict(rtol=0.1), NEXT, {}, {}, "ode.rtol: solvers with fixed steps"),
    (dict(rtol=0.1, solver="dopri5"), NEXT, {},
     {"rtol": 0.1, "solver": "dopri5"}, None),
    (dict(rtol=0.1, solver="dopri5"), NEXT, {"rtol": 0.2},
     {"rtol": 0.2, "solver": "dopri5"}, None),
  ],
)  # fmt: skip
def test_settings_become_options(settings, defaults, flags, values, remark):
  found = Settings(**settings).option_values(defaults, TRAINED, flags)
  assert found[0] == values
  assert [text.startswith(remark) for text in found[1]] == [True] * bool(remark)


def test_networks_without_a_trained_size_do_not_scale():
  chosen = Settings(proportional_attn=True)
  values, remarks = chosen.option_values(PLAIN, UNKNOWN, {})
  assert values == {} and remarks[0].startswith("proportional_attn: this")
