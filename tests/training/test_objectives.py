"""Objectives beyond training: velocities, exports, formats without them."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from support.configs import small_config

from configs import digits, imagenet, text_to_image, text_to_video
from lumina_jax.flow import path as paths
from lumina_jax.flow.objective import Objective
from lumina_jax.interop import native
from lumina_jax.interop.convert import LAYOUTS, convert
from lumina_jax.model.network import Constants
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained import export
from lumina_jax.training import data, run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import TrainState

NOISE = dict(path="vp", prediction="noise", weight="none")
UNWEIGHTED = [
  Objective(*words, "none")
  for words in itertools.product(paths.PATHS, paths.PREDICTIONS)
]


@pytest.fixture(scope="module")
def batch():
  return data.make_batches(small_config()).batch(0)


def velocity_of(objective, batch, monkeypatch):
  """`Network.velocity` of a batch where the backbone predicts given values."""
  network = dataclasses.replace(small_config().network, objective=objective)
  tokens, condition = batch
  rng = np.random.default_rng(0)
  x, out = rng.standard_normal((2, *tokens.patches.shape), np.float32)
  time = rng.uniform(0.1, 0.9, condition.sample_ids.shape).astype(np.float32)
  monkeypatch.setattr(type(network), "prediction", lambda *_: out)
  constants = Constants(condition._replace(time=time), None)
  found, _ = network.velocity(None, tokens._replace(patches=x), constants)
  return found, out, x, time, tokens.segments


@pytest.mark.parametrize("objective", UNWEIGHTED, ids=str)
def test_a_network_always_gives_a_velocity(objective, batch, monkeypatch):
  found, out, x, time, segments = velocity_of(objective, batch, monkeypatch)
  slots = np.maximum(segments - 1, 0)
  t = np.take_along_axis(time, slots, axis=1)[..., None]
  expected = objective.velocity(out, x, t)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_predicted_velocity_is_returned_as_it_is(batch, monkeypatch):
  found, out, *_ = velocity_of(Objective(path="vp"), batch, monkeypatch)
  assert found is out


@pytest.mark.parametrize(
  "family", [digits, imagenet, text_to_image, text_to_video]
)
def test_a_config_file_states_its_objective(family):
  values = family.get_config().objective.to_dict()
  assert values == dataclasses.asdict(Objective())


def test_an_unknown_name_is_reported_with_its_section():
  with pytest.raises(
    ValueError, match=r"config\.objective: unknown prediction 'nois'; did you"
  ):
    small_config(objective__prediction="nois")


@pytest.fixture(scope="module")
def noise_run(tmp_path_factory):
  """A workdir with an untrained network that predicts noise."""
  config = small_config(**{f"objective__{k}": v for k, v in NOISE.items()})
  folder = tmp_path_factory.mktemp("runs") / "noise"
  folder.mkdir()
  run_config.save(config, folder)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.1 * rng.standard_normal(x.shape, np.float32),
    config.network.shapes(),
  )
  one = np.int32(1)
  with Checkpoints(folder, keep=1) as checkpoints:
    checkpoints.save(
      TrainState(one, np.int32(0), params, params, {"count": one})
    )
  return folder


@pytest.fixture(scope="module")
def noise_export(noise_run):
  folder = noise_run.parent / "export"
  LuminaPipeline.from_workdir(noise_run).save_pretrained(
    folder, dtype="float32"
  )
  return folder


def test_an_export_keeps_the_objective(noise_run, noise_export):
  pipe = LuminaPipeline.from_workdir(noise_run)
  assert pipe.network.objective == Objective(**NOISE)
  again = LuminaPipeline.from_pretrained(noise_export)
  assert again.network == pipe.network
  jax.tree.map(np.testing.assert_array_equal, again.params, pipe.params)
  call = dict(seed=3, output_type="latent", num_inference_steps=2)
  assert np.isfinite(again("7", **call).images[0]).all()


def test_the_shipped_export_predicts_a_velocity():
  assert LuminaPipeline.from_pretrained().network.objective == Objective()
  assert native.read_objective(export.SHIPPED) == Objective()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", ["noise_run", "noise_export"])
def test_formats_of_weights_alone_refuse_it(layout, source, request, tmp_path):
  folder = request.getfixturevalue(source)
  with pytest.raises(
    ValueError, match=r"prediction 'noise' on the path 'vp'.*save_pretrained"
  ):
    convert(folder, tmp_path / "out", layout)
  assert not (tmp_path / "out").exists()


def test_diffusers_refuses_it(noise_run, tmp_path):
  pipe = LuminaPipeline.from_workdir(noise_run)
  with pytest.raises(ValueError, match=r"'noise' on the path 'vp'.*layout="):
    pipe.save_pretrained(tmp_path / "out", layout="diffusers")
  assert not (tmp_path / "out").exists()
