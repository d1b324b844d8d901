"""diffusers' LuminaNextDiT2DModel and torch's files, both ways."""

import argparse
import collections
import dataclasses

import jax
import numpy as np
import pytest
from support.families import (
  FAMILIES,
  NEXT,
  assert_same,
  random_params,
  shapes_once,  # noqa: F401
  state_dict,
)

from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.convert import convert
from lumina_jax.interop import load_pytorch, save_pytorch
from lumina_jax.model.velocity import predict_velocity

torch = pytest.importorskip(
  "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
)
diffusers = pytest.importorskip("diffusers", reason="diffusers is an oracle")
from diffusers.models.embeddings import (  # noqa: E402
  get_2d_rotary_pos_embed_lumina,
)

pytestmark = pytest.mark.parity

SMALL = dict(
  patch_size=2,
  in_channels=4,
  hidden_size=32,
  num_layers=2,
  num_attention_heads=2,
  num_kv_heads=1,
  multiple_of=16,
  cross_attention_dim=24,
)
VARIANTS = {
  "gqa": {},
  "untied": {},
  "mha": dict(
    num_kv_heads=None,
    qk_norm=False,
    learn_sigma=False,
    norm_eps=1e-6,
    ffn_dim_multiplier=1.3,
  ),
}
TIME = np.float32([0.15, 0.8])


def normal(*shape, seed=0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


LATENTS = normal(2, 4, 12, 8)  # Channels first, and not square.
TEXT = normal(2, 6, 24, seed=1)
LAST = 0.1  # Scales the last layer: velocities are of about one.
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


def model(tied=True, **changes):
  """Their model with no parameter that is zero, one or like another."""
  found = diffusers.LuminaNextDiT2DModel(**SMALL | changes).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in found.parameters():
      parameter.normal_(std=0.3 if parameter.ndim > 1 else 1)
    for parameter in found.norm_out.linear_2.parameters():
      parameter *= LAST
    if tied:  # As published: one query for both attentions.
      for layer in found.layers:
        layer.attn2.to_q.load_state_dict(layer.attn1.to_q.state_dict())
        if layer.attn1.norm_q is not None:
          layer.attn2.norm_q.load_state_dict(layer.attn1.norm_q.state_dict())
  return found


def theirs(model, linear=1.0, ntk=1.0, base=None) -> np.ndarray:
  """Velocity of their model, channels last."""
  rotary = get_2d_rotary_pos_embed_lumina(
    model.head_dim, 384, 384, linear_factor=linear, ntk_factor=ntk
  )
  with torch.no_grad():
    out = model(
      hidden_states=torch.tensor(LATENTS),
      timestep=torch.tensor(TIME),
      encoder_hidden_states=torch.tensor(TEXT),
      encoder_mask=torch.tensor(MASK),
      image_rotary_emb=rotary,
      cross_attention_kwargs={}
      if base is None
      else dict(base_sequence_length=base),
    ).sample
  return np.moveaxis(out.numpy()[:, :4], 1, -1)


def ours(cfg, params, **options) -> np.ndarray:
  """Velocity of our network for the same input."""
  latents = np.moveaxis(LATENTS, 1, -1)
  return predict_velocity(
    cfg, params, latents, TIME, text=TEXT, text_mask=MASK, **options
  )


def assert_close(found, expected):
  assert np.abs(expected).mean() > 0.1  # There is something to compare.
  np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


@pytest.fixture(autouse=True, scope="module")
def full_precision():
  with jax.default_matmul_precision("highest"):
    yield


def both(variant, folder):
  """A model of theirs, and what we make of its files."""
  found = model(tied=variant != "untied", **VARIANTS[variant])
  found.save_pretrained(folder, max_shard_size="40kB")
  return found, *load_pytorch(folder)


@pytest.fixture(scope="module")
def gqa(tmp_path_factory):
  return both("gqa", tmp_path_factory.mktemp("gqa"))


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
  return both(request.param, tmp_path_factory.mktemp(request.param))


def test_networks_are_told_apart(tmp_path):
  seen = {}
  for variant in VARIANTS:
    _, cfg, _ = both(variant, tmp_path / variant)
    seen[variant] = cfg
    assert len(list((tmp_path / variant).glob("*.safetensors"))) > 1
  gqa = seen["gqa"]
  assert (gqa.heads, gqa.kv_heads, gqa.qk_norm) == (2, 1, True)
  assert not gqa.text_query
  assert seen["untied"] == dataclasses.replace(gqa, text_query=True)
  assert seen["mha"] == dataclasses.replace(
    gqa, kv_heads=2, qk_norm=False, norm_eps=1e-6, ffn_factor=1.3
  )


def test_velocity_is_theirs(pair):
  found, cfg, params = pair
  assert_close(ours(cfg, params), theirs(found))


def test_diffusers_loads_what_we_save(tmp_path, pair):
  _, cfg, _ = pair
  params = random_params(cfg)
  params["final"] = jax.tree.map(lambda x: x * LAST, params["final"])
  save_pytorch(params, cfg, tmp_path / "out", layout="diffusers")
  found, report = diffusers.LuminaNextDiT2DModel.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not any(report.values()), report
  assert_close(ours(cfg, params), theirs(found.eval()))
  # And what it saves again is what we saved.
  found.save_pretrained(tmp_path / "again")
  again, back = load_pytorch(tmp_path / "again")
  assert again == cfg
  assert_same(back, params)


@pytest.mark.parametrize(
  "factors", [(1.0, 1.0), (2.0, 1.0), (1.0, 2.5), (1.7, 3.0)]
)
def test_stretched_positions_are_theirs(gqa, factors):
  found, cfg, params = gqa
  expected = theirs(found, *factors)
  rope = RopeScaling("linear", *factors)
  assert_close(ours(cfg, params, rope=rope), expected)
  if factors != (1.0, 1.0):
    assert np.abs(expected - theirs(found)).max() > 1e-3


@pytest.mark.parametrize("base", [6, 24, 300])
def test_proportional_attention_is_theirs(gqa, base):
  found, cfg, params = gqa
  expected = theirs(found, base=base)
  options = dict(proportional_attention_base=base)
  assert_close(ours(cfg, params, **options), expected)
  if base != 24:  # Tokens of this size: nothing changes.
    assert np.abs(expected - theirs(found)).max() > 1e-3


def test_a_whole_pipeline_and_half_precision(tmp_path, gqa):
  found, _, _ = gqa
  half = diffusers.LuminaNextDiT2DModel(**SMALL)
  half.load_state_dict(found.state_dict())
  half.to(torch.bfloat16).save_pretrained(tmp_path / "transformer")
  _, params = load_pytorch(tmp_path)
  kernel = half.layers[1].attn1.to_k.weight.float().detach().numpy()
  found = params["blocks"]["attention"]["key"]["kernel"][1]
  np.testing.assert_array_equal(found.reshape(32, 16).T, kernel)


@pytest.fixture(scope="module")
def state():
  """A state dict of the original code, in torch's tensors."""
  arrays = state_dict(NEXT, random_params(NEXT))
  return {key: torch.tensor(x) for key, x in arrays.items()}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_what_torch_saves_is_loaded(tmp_path, state, wrapper):
  saved = state
  if wrapper:
    saved = {wrapper: state, "epoch": 3, "lr": 1e-4, "betas": (0.9, 0.99)}
  torch.save(saved, tmp_path / "lone.pth")
  cfg, params = load_pytorch(tmp_path / "lone.pth")
  assert cfg == NEXT
  assert_same(params, random_params(NEXT))


def test_what_lightning_saves_of_audio_is_loaded(tmp_path):
  cfg = FAMILIES["audio"]
  arrays = state_dict(cfg, random_params(cfg), "audio")
  whole = {
    f"model.diffusion_model.{k}": torch.tensor(x) for k, x in arrays.items()
  }
  whole["first_stage_model.encoder.weight"] = torch.ones(3, 2)
  whole["scale_factor"] = torch.tensor(0.7)
  moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}
  torch.save(
    {
      "epoch": 9,
      "pytorch-lightning_version": "1.4.2",
      "state_dict": whole,
      "lr_schedulers": [{"milestones": collections.Counter([30, 60])}],
      "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-4}]}],
    },
    tmp_path / "last.ckpt",
  )
  found, params = load_pytorch(tmp_path / "last.ckpt")
  assert found == cfg
  assert_same(params, random_params(cfg))


def test_a_folder_that_a_run_of_the_original_left(tmp_path, state):
  for ema, factor in (("", 1), ("_ema", 2)):
    scaled = {key: factor * x for key, x in state.items()}
    torch.save(scaled, tmp_path / f"consolidated{ema}.00-of-01.pth")
  args = argparse.Namespace(
    model="NextDiT_2B_GQA_patch2", qk_norm=True, lr=1e-4, resume=None
  )
  torch.save(args, tmp_path / "model_args.pth")
  raw = load_pytorch(tmp_path, ema=False)[1]
  assert_same(raw, random_params(NEXT))
  averaged = load_pytorch(tmp_path)[1]
  assert_same(averaged, jax.tree.map(lambda x: 2 * x, raw))


def test_torch_loads_what_we_save(tmp_path, state):
  params = random_params(NEXT)
  args = {"lm": "google/gemma-2b", "image_size": 512}
  save_pytorch(params, NEXT, tmp_path / "a", model_args=args)
  convert(tmp_path / "a", tmp_path / "b", "lumina", suffix=".pth")
  sigma = {"final_layer.linear.weight", "final_layer.linear.bias"}
  for name in ("consolidated.00-of-01.pth", "consolidated_ema.00-of-01.pth"):
    found = torch.load(tmp_path / "b" / name, weights_only=True)
    assert found.keys() == state.keys()
    for key in found.keys() - sigma:
      assert torch.equal(found[key], state[key]), key
  namespace = torch.load(tmp_path / "b" / "model_args.pth", weights_only=False)
  assert type(namespace) is argparse.Namespace
  assert (namespace.lm, namespace.image_size) == tuple(args.values())
  assert (namespace.n_heads, namespace.n_kv_heads, namespace.dim) == (4, 2, 32)
  assert namespace.model_parallel_size == 1
