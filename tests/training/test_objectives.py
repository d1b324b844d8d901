"""Training with every objective: steps are finite, the rest follows from it."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.configs import ROOT, small_config, small_flags

from configs import digits, imagenet, text_to_image, text_to_video
from lumina_jax import convert, packing
from lumina_jax.files import schema
from lumina_jax.flow import path as paths
from lumina_jax.flow.loss import TimeDistribution
from lumina_jax.flow.objective import WEIGHTS, Objective
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained import export
from lumina_jax.tokens import per_token
from lumina_jax.training import data, gradient, metrics, run_config
from lumina_jax.training import step as steps
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import TrainState

NOISE = dict(path="vp", prediction="noise", weight="none")
ALL = [
  Objective(*words)
  for words in itertools.product(paths.PATHS, paths.PREDICTIONS, WEIGHTS)
]
every = pytest.mark.parametrize(
  "objective", ALL, ids=lambda o: f"{o.path}-{o.prediction}-{o.weight}"
)


class Affine:
  """Predicts a x + b t + c; what `flow_loss` asks of a network, no more."""

  def __init__(self, objective):
    self.objective = objective
    self.model = dataclasses.make_dataclass("Model", ["balance_weight"])(0.0)

  def encode(self, params, condition):
    return condition

  def prediction(self, params, tokens, condition):
    t = per_token(condition.time[..., None], tokens.segments)
    return params["a"] * tokens.patches + params["b"] * t + params["c"]


@pytest.fixture(scope="module")
def packed():
  """A real batch: samples of several sizes side by side."""
  return data.make_batches(small_config()).batch(0)


def begun(params, tx):
  """A state at step 0."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, zero, params, params, tx.init(params))


@every
def test_steps_are_finite_and_move(objective, packed):
  tx, times = optax.adam(1e-2), TimeDistribution("uniform")
  state = begun({name: jnp.zeros(()) for name in "abc"}, tx)
  # Not jitted, so that all objectives share what is compiled.
  update = steps.make_train_step(Affine(objective), tx, times, 0.9, seed=0)
  for _ in range(3):
    state, values = update(state, packed)
    assert np.isfinite([values["loss"], values["grad_norm"]]).all()
    assert values["grad_norm"] > 0
  assert all(np.isfinite(x) and x != 0 for x in state.params.values())


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
  "words",
  [
    ("linear", "noise", "likelihood"),
    ("linear", "data", "velocity"),
    ("gvp", "score", "velocity"),
    ("vp", "velocity", "none"),
  ],
)
def test_a_tiny_transformer_trains_and_gives_a_velocity(words, packed):
  config = dataclasses.replace(small_config(), objective=Objective(*words))
  network, key = config.network, jax.random.key(0)
  params = jax.tree.map(  # The last layer begins at zero; all shall count.
    lambda x: 0.1 * jax.random.normal(key, x.shape), network.shapes()
  )
  tx = optax.adam(1e-3)
  state = begun(params, tx)
  update = jax.jit(steps.make_train_step(network, tx, config.time, 0.9, 0))
  for _ in range(3):
    state, values = update(state, packed)
    assert np.isfinite([values["loss"], values["grad_norm"]]).all()
  tokens, condition = packed
  condition = network.encode(state.params, condition)
  velocity = jax.jit(network.velocity)
  for t in (0.0, 0.5, 1.0):
    time = jnp.full(condition.sample_ids.shape, t)
    at = condition._replace(time=time)
    assert np.isfinite(velocity(state.params, tokens, at)).all()


def velocity_of(objective, monkeypatch):
  """`Network.velocity` of one batch where the backbone gives known numbers."""
  config = small_config()
  network = dataclasses.replace(config.network, objective=objective)
  tokens, condition = data.make_batches(config).batch(0)
  rng = np.random.default_rng(0)
  x, out = rng.standard_normal((2, *tokens.patches.shape), np.float32)
  time = rng.uniform(0.1, 0.9, condition.sample_ids.shape).astype(np.float32)
  monkeypatch.setattr(
    type(network), "prediction", lambda self, params, tokens, condition: out
  )
  found = network.velocity(
    None, tokens._replace(patches=x), condition._replace(time=time)
  )
  return found, out, x, time, tokens.segments


@pytest.mark.parametrize(
  "objective", [o for o in ALL if o.weight == "none"], ids=str
)
def test_a_network_always_gives_a_velocity(objective, monkeypatch):
  found, out, x, time, segments = velocity_of(objective, monkeypatch)
  for b, token in np.ndindex(*segments.shape):
    t = time[b, max(segments[b, token] - 1, 0)]
    expected = objective.velocity(out[b, token], x[b, token], t)
    if token % 7 == 0:  # A part of them, since each is a call.
      np.testing.assert_allclose(found[b, token], expected, rtol=1e-4)


def test_a_velocity_is_passed_on_as_it_is(monkeypatch):
  found, out, *_ = velocity_of(Objective(path="vp"), monkeypatch)
  assert found is out


def test_plain_objectives_compile_the_same_program(packed):
  """Weights of a velocity that are 1 leave no trace."""
  tx = optax.sgd(0.1)
  state = begun({name: jnp.zeros(()) for name in "abc"}, tx)

  def text(objective):
    times = TimeDistribution("uniform")
    update = steps.make_train_step(Affine(objective), tx, times, 0.9, seed=0)
    return jax.jit(update).lower(state, packed).as_text()

  assert text(Objective()) == text(Objective(weight="velocity"))
  assert text(Objective()) != text(Objective(weight="likelihood"))


def alone(batch, row, slot):
  """One sample of a batch in a row of its own."""
  tokens, condition = batch
  mine = tokens.segments[row] == slot + 1
  cut = [np.asarray(leaf)[row, mine] for leaf in tokens]
  single = type(tokens)(*cut)._replace(segments=np.ones(mine.sum(), np.int32))
  return (
    packing.stack([single]),
    type(condition)(sample_ids=condition.sample_ids[row, slot].reshape(1, 1)),
  )


@pytest.mark.parametrize(
  "words",
  [
    ("vp", "score"),
    pytest.param(("linear", "velocity"), marks=pytest.mark.slow),
  ],
)
def test_packing_changes_no_loss_and_no_time(words, packed):
  objective = Objective(*words, "likelihood")
  times = TimeDistribution("logit_normal", shift=1.5, base_tokens=8)
  params = {"a": 0.3, "b": -0.2, "c": 0.1}

  def flow(batch):
    network, key = Affine(objective), jax.random.key(5)
    return gradient.flow_loss(network, params, batch, times, key)

  together = flow(packed)
  places = np.argwhere(np.asarray(together.exists))[::9]
  assert (
    len({int((packed[0].segments[b] == n + 1).sum()) for b, n in places}) > 1
  )
  for row, slot in places:
    apart = flow(alone(packed, row, slot))
    np.testing.assert_array_equal(
      apart.times[0, 0], together.times[row, slot], strict=False
    )
    np.testing.assert_allclose(
      apart.loss[0, 0], together.loss[row, slot], rtol=1e-5
    )


def test_larger_samples_train_nearer_to_noise(packed):
  """The same keys, with and without the rule."""
  params = {"a": 0.0, "b": 0.0, "c": 0.0}

  def flow(**fields):
    times = TimeDistribution("uniform", **fields)
    network, key = Affine(Objective()), jax.random.key(5)
    return gradient.flow_loss(network, params, packed, times, key)

  plain, by_size = flow(), flow(base_tokens=8)
  numbers = np.arange(1, plain.times.shape[1] + 1)
  tokens = (np.asarray(packed[0].segments)[..., None] == numbers).sum(1)
  t, f = np.asarray(plain.times), np.sqrt(np.maximum(tokens, 1) / 8)
  np.testing.assert_allclose(by_size.times, t / (t + f - f * t), rtol=1e-5)
  assert np.any(tokens > 8) and np.all((by_size.times < t)[tokens > 8])


@pytest.mark.parametrize(
  "family", [digits, imagenet, text_to_image, text_to_video]
)
def test_a_config_file_states_its_objective(family):
  values = family.get_config().objective.to_dict()
  assert values == dataclasses.asdict(Objective())


def test_configs_of_older_runs_have_the_default(tmp_path):
  values = schema.to_dict(small_config())
  del values["objective"]
  values["time"] = {"name": "logit_normal", "mean": 0.0, "std": 1.0}
  assert run_config.parse(values) == small_config()


def test_an_unknown_word_is_named_with_its_section():
  with pytest.raises(
    ValueError, match=r"config\.objective: unknown prediction 'nois'; did you"
  ):
    small_config(objective__prediction="nois")


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory):
  """A workdir of a network that predicts noise, not trained."""
  config = small_config(**{f"objective__{k}": v for k, v in NOISE.items()})
  folder = tmp_path_factory.mktemp("runs") / "noise"
  folder.mkdir()
  run_config.save(config, folder)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.1 * rng.standard_normal(x.shape, np.float32),
    config.network.shapes(),
  )
  store, number = Checkpoints(folder, keep=1), np.int32(1)
  store.save(TrainState(number, np.int32(0), params, params, {"count": number}))
  store.close()
  return folder


def test_an_export_keeps_the_objective(noisy_run, tmp_path):
  pipe = LuminaPipeline.from_workdir(noisy_run)
  assert pipe.network.objective == Objective(**NOISE)
  pipe.save_pretrained(tmp_path / "export", dtype="float32")
  again = LuminaPipeline.from_pretrained(tmp_path / "export")
  assert again.network == pipe.network
  call = dict(seed=3, output_type="latent", num_inference_steps=2)
  expected = pipe("7", **call).images[0]
  assert np.isfinite(expected).all()
  np.testing.assert_array_equal(again("7", **call).images[0], expected)


def test_an_older_export_predicts_a_velocity():
  assert LuminaPipeline.from_pretrained().network.objective == Objective()
  assert convert.ours.objective(export.SHIPPED) == Objective()


@pytest.mark.parametrize("layout", convert.LAYOUTS)
@pytest.mark.parametrize("kind", ["workdir", "export"])
def test_weights_alone_are_not_written(noisy_run, layout, kind, tmp_path):
  source = noisy_run
  if kind == "export":
    source = tmp_path / "export"
    LuminaPipeline.from_workdir(noisy_run).save_pretrained(source)
  with pytest.raises(
    ValueError, match=r"prediction 'noise' on the path 'vp'.*save_pretrained"
  ):
    convert.convert(source, tmp_path / "out", layout)
  assert not (tmp_path / "out").exists()


def test_diffusers_has_no_place_for_it(noisy_run, tmp_path):
  pipe = LuminaPipeline.from_workdir(noisy_run)
  with pytest.raises(ValueError, match=r"'noise' on the path 'vp'.*layout="):
    pipe.save_pretrained(tmp_path / "out", layout="diffusers")
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_small_run_predicts_noise(tmp_path):
  """As a user runs it: trained, sampled, its numbers written down."""
  changes = {f"objective__{k}": v for k, v in NOISE.items()}
  changes |= dict(time__base_tokens=8, training__steps=4)
  words = ["--config=configs/digits.py", f"--workdir={tmp_path}"]
  done = command("train", *words, *small_flags(**changes))
  assert done.returncode == 0, done.stderr
  assert all(np.isfinite(row["loss"]) for row in metrics.read(tmp_path))
  config = run_config.load(tmp_path)
  assert config.objective == Objective(**NOISE)
  assert config.time.base_tokens == 8
  out = tmp_path / "pictures"
  done = command(
    "sample", f"--workdir={tmp_path}", "--prompt=7", f"--output={out}"
  )
  assert done.returncode == 0, done.stderr
  assert (out / "7_seed0_0.png").exists()


def command(module, *words) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"lumina_jax.{module}", *map(str, words)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
