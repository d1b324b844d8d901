"""Parameters to start from: every source, and every difference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from support.configs import randomised, tiny_config

from lumina_jax.flow.objective import Objective
from lumina_jax.interop import save_pytorch
from lumina_jax.interop.convert import NATIVE, convert
from lumina_jax.model.network import Network
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.runs.init_from import resolve
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import (
  TrainState,
  abstract_state,
  create_state,
  replace_params,
)


@pytest.fixture(scope="module")
def config():
  return tiny_config("text_to_image")


@pytest.fixture(scope="module")
def pipe(config):
  return randomised(config)


@pytest.fixture(scope="module")
def export(pipe, tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "pipeline"
  pipe.save_pretrained(folder, dtype="float32")
  return folder


@pytest.fixture(scope="module")
def workdir(config, pipe, tmp_path_factory):
  """A run whose raw parameters are the EMA parameters plus 1."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  folder.mkdir()
  run_config.save(config, folder)
  raw = jax.tree.map(lambda x: x + 1, pipe.params)
  state = dict.fromkeys(TrainState._fields, np.int32(7))
  state |= dict(params=raw, ema=pipe.params, opt_state={"m": np.zeros(3)})
  with Checkpoints(folder, 1) as checkpoints:
    checkpoints.save(TrainState(**state))
  return folder


@pytest.fixture(scope="module")
def original(config, pipe, tmp_path_factory):
  """The backbone alone, in PyTorch's format."""
  folder = tmp_path_factory.mktemp("weights") / "original"
  save_pytorch(jax.device_get(pipe.params["backbone"]), config.model, folder)
  return folder


@pytest.fixture(scope="module")
def converted(original):
  """The backbone alone, in our format."""
  folder = original.parent / "converted"
  convert(original, folder, NATIVE)
  return folder


def with_model(network, **changes):
  changed = dataclasses.replace(network.model, **changes)
  return dataclasses.replace(network, model=changed)


def flatten(tree):
  return traverse_util.flatten_dict(tree)


def test_without_a_source_there_are_no_parameters(config):
  assert resolve(config.network, "") is None


@pytest.mark.parametrize("source", ["export", "workdir"])
def test_our_own_formats_hold_the_text_encoder_too(
  config, pipe, source, request, capsys
):
  found = dict(resolve(config.network, request.getfixturevalue(source)))
  expected = flatten(jax.device_get(pipe.params))
  assert found.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_array_equal(found[path], array)
    assert found[path].dtype == np.float32
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("source", ["original", "converted"])
def test_with_a_backbone_alone_the_text_encoder_stays_random(
  config, pipe, source, request, capsys
):
  folder = request.getfixturevalue(source)
  capsys.readouterr()
  found = resolve(config.network, folder)
  expected = flatten(jax.device_get(pipe.params["backbone"]))
  assert {path[1:] for path in found.paths} == set(expected)
  path = ("final", "kernel")
  np.testing.assert_array_equal(found.read(("backbone", *path)), expected[path])
  printed = capsys.readouterr().out
  assert "4 keep random values" in printed
  assert "4 missing:" in printed
  assert "text_encoder/bytes: (257, 32)" in printed


def new_state(config, network, seed):
  """A state as `create_state` places it, without compiling."""
  tx = make_optimizer(config.optimizer, 1000)
  rng = np.random.default_rng(seed)
  abstract = abstract_state(network, tx, make_mesh(config.mesh))

  def place(x):
    return jax.device_put(rng.uniform(size=x.shape).astype(x.dtype), x.sharding)

  state = jax.tree.map(place, abstract)
  return state._replace(ema=jax.tree.map(jnp.copy, state.params))


def test_parameters_and_ema_start_from_the_ema(config, pipe, workdir):
  new = new_state(config, config.network, 1)
  shardings = jax.tree.map(lambda x: x.sharding, new)
  state = replace_params(new, resolve(config.network, workdir))
  for tree in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, tree, pipe.params)
  assert jax.tree.map(lambda x: x.sharding, state) == shardings
  # The step donates its state: nothing may be shared.
  pointers = [
    {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}
    for tree in (state.params, state.ema)
  ]
  assert not pointers[0] & pointers[1]


def test_tensors_that_do_not_fit_stay_random(config, pipe, workdir):
  network = with_model(config.network, depth=3)
  new = new_state(config, network, 2)
  random = flatten(jax.tree.map(np.array, new.params))
  source = flatten(jax.device_get(pipe.params))
  state = replace_params(new, resolve(network, workdir, strict=False))
  for tree in (state.params, state.ema):
    for path, array in flatten(tree).items():
      expected = random if path[1] == "blocks" else source
      np.testing.assert_array_equal(array, expected[path])


def test_a_created_state_takes_them(config, pipe, workdir):
  network = config.network
  tx, mesh = make_optimizer(config.optimizer, 1000), make_mesh(config.mesh)
  state = create_state(network, tx, mesh, 0, resolve(network, workdir))
  assert (int(state.step), int(state.skipped)) == (0, 0)
  jax.tree.map(np.testing.assert_array_equal, state.params, pipe.params)


def test_stages_of_one_network_count_as_equal(config, workdir, capsys):
  """More tokens, longer captions, scaled positions, another weight."""
  network = with_model(
    config.network, rope_linear=2.0, rope_theta=1e6, remat="none", unroll=2
  )
  text = dataclasses.replace(network.text_encoder, max_words=64)
  network = Network(network.model, text, Objective(weight="velocity"))
  found = resolve(network, workdir)
  assert len(found.paths) == len(flatten(network.shapes()))
  printed = capsys.readouterr().out
  assert "0 keep random values" in printed
  assert "model.rope_linear = 2.0, but 1.0 in the source" in printed
  assert "text_encoder.max_words = 64, but 8 in the source" in printed
  assert "remat" not in printed and "weight" not in printed


NOISE = Objective(prediction="noise")


@pytest.mark.parametrize(
  ("source", "change", "message"),
  [
    (
      "workdir",
      lambda n: with_model(n, depth=3, tanh_gate=False),
      r"model.depth = 3, but 2 in the source; model.tanh_gate = False, but",
    ),
    (
      "workdir",
      lambda n: with_model(n, ffn_factor=2.0),
      r"ffn_width = 352, but 192",
    ),
    (
      "workdir",
      lambda n: Network(n.model, n.text_encoder, NOISE),
      r"objective: prediction 'noise' .*, but prediction 'velocity'",
    ),
    (
      "workdir",
      lambda n: Network(
        n.model, dataclasses.replace(n.text_encoder, byte_width=16)
      ),
      r"text_encoder.byte_width = 16, but 32",
    ),
    (
      "original",
      lambda n: dataclasses.replace(n, objective=NOISE),
      "objective: prediction 'noise'",
    ),
    (
      "original",
      lambda n: with_model(n, depth=3),
      "model.depth = 3, but 2 in the source",
    ),
  ],
)
def test_strict_names_any_difference(config, source, change, message, request):
  with pytest.raises(ValueError, match=message) as error:
    resolve(change(config.network), request.getfixturevalue(source))
  assert "init_strict = False" in str(error.value)


def test_everything_that_is_not_used_is_listed(config, workdir, capsys):
  network = with_model(
    config.network, sandwich=False, channels=8, norm_eps=1e-6
  )
  network = dataclasses.replace(network, objective=NOISE)
  found = resolve(network, workdir, strict=False)
  lines = capsys.readouterr().out.splitlines()
  count, shapes = len(found.paths), flatten(network.shapes())
  assert lines[0] == (
    f"init_from = {workdir}: uses {count} of {len(shapes)} tensors, "
    f"{len(shapes) - count} keep random values"
  )
  lines = [line.strip() for line in lines]
  assert "model.norm_eps = 1e-06, but 1e-05 in the source" in lines
  assert any(line.startswith("objective: ") for line in lines)
  assert "3 of another shape:" in lines
  name = "backbone/patch_embed/kernel"
  assert f"{name}: expected (32, 64), found (16, 64)" in lines
  assert "2 unexpected:" in lines
  assert "backbone/blocks/attention_post_norm/scale: (2, 64)" in lines
  assert len(shapes) - count == 3


def test_a_source_without_any_fitting_tensor_is_refused(workdir):
  sizes = dict(width=32, cond_width=32, depth=1, channels=8)
  network = with_model(
    tiny_config("imagenet").network, **sizes, final_shift=False
  )
  with pytest.raises(ValueError, match="no tensor in common"):
    resolve(network, workdir, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_an_empty_folder_is_refused(config, tmp_path, strict):
  with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)):
    resolve(config.network, tmp_path, strict)
  run_config.save(config, tmp_path)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
    resolve(config.network, tmp_path, strict)
