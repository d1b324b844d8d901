"""What a run begins with: every source, every difference, named or listed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from support.configs import randomised, tiny_config

from lumina_jax import convert
from lumina_jax.flow.objective import Objective
from lumina_jax.interop import save_pytorch
from lumina_jax.model.network import Network
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.runs.init_from import begin_with, open_start
from lumina_jax.training import run_config
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.state import TrainState, abstract_state


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
  """Of a run whose raw parameters are the averaged ones plus 1."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  folder.mkdir()
  run_config.save(config, folder)
  raw = jax.tree.map(lambda x: x + 1, pipe.params)
  state = dict.fromkeys(TrainState._fields, np.int32(7))
  state |= dict(params=raw, ema=pipe.params, opt_state={"m": np.zeros(3)})
  saved = Checkpoints(folder, 1)
  saved.save(TrainState(**state))
  saved.close()
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
  convert.convert(original, folder, convert.OURS)
  return folder


def model(network, **changes):
  changed = dataclasses.replace(network.model, **changes)
  return dataclasses.replace(network, model=changed)


def flatten(tree):
  return traverse_util.flatten_dict(tree)


@pytest.mark.parametrize("source", ["export", "workdir"])
def test_what_is_ours_gives_its_text_encoder_too(
  config, pipe, source, request, capsys
):
  start = open_start(config.network, request.getfixturevalue(source))
  wanted = flatten(jax.device_get(pipe.params))
  assert set(start.taken) == set(wanted)
  for path, array in wanted.items():
    np.testing.assert_array_equal(start.read(path), array)
    assert start.read(path).dtype == np.float32
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("source", ["original", "converted"])
def test_a_backbone_alone_leaves_the_text_encoder_to_start_anew(
  config, pipe, source, request, capsys
):
  folder = request.getfixturevalue(source)
  capsys.readouterr()
  start = open_start(config.network, folder)
  wanted = flatten(jax.device_get(pipe.params["backbone"]))
  assert {path[1:] for path in start.taken} == set(wanted)
  path = ("final", "kernel")
  np.testing.assert_array_equal(start.read(("backbone", *path)), wanted[path])
  said = capsys.readouterr().out
  assert "4 start anew" in said and "4 missing there:" in said
  assert "text_encoder/bytes: (257, 32)" in said


def fresh_state(config, network, seed):
  """A state as `create_state` places it, with nothing to compile."""
  tx = make_optimizer(config.optimizer, 1000)
  rng = np.random.default_rng(seed)
  abstract = abstract_state(network, tx, make_mesh(config.mesh))

  def place(x):
    return jax.device_put(rng.uniform(size=x.shape).astype(x.dtype), x.sharding)

  state = jax.tree.map(place, abstract)
  return state._replace(ema=jax.tree.map(jnp.copy, state.params))


def test_parameters_and_average_begin_with_the_average(config, pipe, workdir):
  fresh = fresh_state(config, config.network, 1)
  placed = jax.tree.map(lambda x: x.sharding, fresh)
  state = begin_with(fresh, open_start(config.network, workdir))
  for tree in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, tree, pipe.params)
  assert jax.tree.map(lambda x: x.sharding, state) == placed
  assert int(state.step) == 0
  # The step gives its state away: nothing may be shared.
  pointers = [
    {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}
    for tree in (state.params, state.ema)
  ]
  assert not pointers[0] & pointers[1]


def test_what_does_not_fit_keeps_what_it_was_born_with(config, pipe, workdir):
  network = model(config.network, depth=3)
  fresh = fresh_state(config, network, 2)
  born = flatten(jax.tree.map(np.array, fresh.params))
  there = flatten(jax.device_get(pipe.params))
  state = begin_with(fresh, open_start(network, workdir, strict=False))
  for tree in (state.params, state.ema):
    for path, array in flatten(tree).items():
      expected = born if path[1] == "blocks" else there
      np.testing.assert_array_equal(array, expected[path])


def test_stages_of_one_network_are_equal(config, workdir, capsys):
  """More tokens, longer captions, stretched positions, another weight."""
  network = model(
    config.network, rope_linear=2.0, rope_theta=1e6, remat="none", unroll=2
  )
  text = dataclasses.replace(network.text_encoder, max_words=64)
  network = Network(network.model, text, Objective(weight="velocity"))
  assert len(open_start(network, workdir).taken) == len(
    flatten(network.shapes())
  )
  said = capsys.readouterr().out
  assert "0 start anew" in said
  assert "model.rope_linear = 2.0, there 1.0" in said
  assert "text_encoder.max_words = 64, there 8" in said
  assert "remat" not in said and "weight" not in said


NOISE = Objective(prediction="noise")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda n: model(n, depth=3, tanh_gate=False),
      r"model.depth = 3, there 2; model.tanh_gate = False, there True",
    ),
    (lambda n: model(n, ffn_factor=2.0), r"ffn_width = 352, there 192"),
    (
      lambda n: Network(n.model, n.text_encoder, NOISE),
      r"objective: prediction 'noise' .*there prediction 'velocity'",
    ),
    (
      lambda n: Network(
        n.model, dataclasses.replace(n.text_encoder, byte_width=16)
      ),
      r"text_encoder.byte_width = 16, there 32",
    ),
  ],
)
def test_any_difference_is_named(config, workdir, change, message):
  with pytest.raises(ValueError, match=message) as error:
    open_start(change(config.network), workdir)
  assert "init_strict = False" in str(error.value)


def test_a_published_network_predicts_velocities(config, original):
  network = dataclasses.replace(config.network, objective=NOISE)
  with pytest.raises(ValueError, match="objective: prediction 'noise'"):
    open_start(network, original)


def test_the_list_names_all_that_is_not_taken(config, workdir, capsys):
  network = model(config.network, sandwich=False, channels=8, norm_eps=1e-6)
  network = dataclasses.replace(network, objective=NOISE)
  start = open_start(network, workdir, strict=False)
  said = capsys.readouterr().out.splitlines()
  count, shapes = len(start.taken), flatten(network.shapes())
  assert said[0] == (
    f"init_from = {workdir}: {count} of {len(shapes)} tensors taken, "
    f"{len(shapes) - count} start anew"
  )
  said = [line.strip() for line in said]
  assert "model.norm_eps = 1e-06, there 1e-05" in said
  assert any(line.startswith("objective: ") for line in said)
  assert "3 of another shape:" in said
  assert "backbone/patch_embed/kernel: (32, 64), there (16, 64)" in said
  assert "2 left over there:" in said
  assert "backbone/blocks/attention_post_norm/scale: (2, 64)" in said
  assert len(shapes) - count == 3


def test_nothing_in_common_is_refused(config, workdir):
  network = tiny_config("imagenet").network
  sizes = dict(width=32, cond_width=32, depth=1, channels=8)
  network = model(network, **sizes, final_shift=False)
  with pytest.raises(ValueError, match="no tensor in common"):
    open_start(network, workdir, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_a_folder_of_nothing_is_refused(config, tmp_path, strict):
  with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)):
    open_start(config.network, tmp_path, strict)
  run_config.save(config, tmp_path)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
    open_start(config.network, tmp_path, strict)
