"""The pipeline of diffusers and ours, on one folder: the same pixels."""

import numpy as np
import pytest

torch = pytest.importorskip(
  "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
)
pytest.importorskip("diffusers", reason="diffusers is an oracle")
from support import peer  # noqa: E402

from lumina_jax import LuminaPipeline  # noqa: E402

pytestmark = [pytest.mark.e2e, pytest.mark.parity]

STEPS = dict(num_inference_steps=5, guidance_scale=4.0)
# A pixel in 255 may round the other way.
ONE = 1
PROMPT = "an orange cat sits on a wooden chair"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("peer")
  peer.make(path)
  return path


@pytest.fixture(scope="module")
def theirs(folder):
  return peer.load(folder)


@pytest.fixture(scope="module")
def ours(folder):
  return LuminaPipeline.from_pretrained(folder, dtype="float32")


def noise(height, width, count=1, seed=0):
  """Latents in the order of diffusers, channels first."""
  shape = (count, 4, height // 8, width // 8)
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_theirs(pipe, latents, **call):
  images = pipe(latents=torch.tensor(latents), output_type="np", **call).images
  return np.round(255 * images).astype(int)


def run_ours(pipe, latents, **call):
  images = pipe(
    latents=latents.transpose(0, 2, 3, 1),
    output_type="uint8",
    compatibility="diffusers",
    **call,
  ).images
  return np.stack(images).astype(int)


def assert_same_pixels(a, b):
  assert a.shape == b.shape
  assert np.ptp(a) > 100, "a flat image proves nothing"
  assert np.abs(a - b).max() <= ONE


@pytest.mark.parametrize(
  ("height", "width"),
  [
    (64, 96),
    (128, 64),
    pytest.param(64, 64, marks=pytest.mark.long),
    pytest.param(32, 32, marks=pytest.mark.long),
  ],
)
def test_the_same_image(ours, theirs, height, width):
  call = dict(prompt=PROMPT, height=height, width=width, **STEPS)
  latents = noise(height, width)
  assert_same_pixels(
    run_ours(ours, latents, **call), run_theirs(theirs, latents, **call)
  )


@pytest.mark.parametrize(
  "call",
  [
    pytest.param(dict(guidance_scale=1.0), id="unguided"),
    pytest.param(dict(negative_prompt="snow"), id="negative"),
    pytest.param(dict(negative_prompt=" SNOW Fox "), id="not cleaned"),
    # Cut at the end of the padded prompt.
    pytest.param(
      dict(prompt="fox", negative_prompt=f"{PROMPT} {PROMPT}"), id="cut"
    ),
    pytest.param(dict(proportional_attn=False), id="not proportional"),
    pytest.param(dict(scaling_watershed=0.5), id="watershed"),
    pytest.param(dict(sigmas=[1.0, 0.9, 0.4, 0.2, 0.05]), id="sigmas"),
    pytest.param(dict(prompt=" A Red FOX in the snow. "), id="capitals"),
  ],
)
def test_options_mean_the_same(ours, theirs, call):
  call = dict(prompt=PROMPT, height=64, width=96) | STEPS | call
  latents = noise(64, 96, seed=1)
  assert_same_pixels(
    run_ours(ours, latents, **call), run_theirs(theirs, latents, **call)
  )


def test_prompts_of_different_lengths(ours, theirs):
  call = dict(prompt=["fox", PROMPT], height=32, width=64, **STEPS)
  latents = noise(32, 64, count=2)
  assert_same_pixels(
    run_ours(ours, latents, **call), run_theirs(theirs, latents, **call)
  )


def test_several_images_of_a_prompt(ours, theirs):
  call = dict(prompt=PROMPT, num_images_per_prompt=2, height=32, width=32)
  latents = noise(32, 32, count=2)
  a = run_ours(ours, latents, **call | STEPS)
  assert_same_pixels(a, run_theirs(theirs, latents, **call | STEPS))
  assert np.abs(a[0] - a[1]).max() > 20


def test_features_that_callers_pass(ours, theirs):
  """What diffusers encodes can be passed to us, and the other way round."""
  names = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
  )
  encoded = theirs.encode_prompt(PROMPT, clean_caption=False)
  with torch.no_grad():
    given = dict(
      zip(names, (x.numpy(force=True) for x in encoded), strict=True)
    )
  latents, call = noise(32, 32), dict(height=32, width=32, **STEPS)
  expected = run_theirs(theirs, latents, prompt=PROMPT, **call)
  assert_same_pixels(run_ours(ours, latents, **given, **call), expected)
  own = dict(zip(names, ours.encode_prompt(PROMPT), strict=True))
  back = {
    name: torch.tensor(x, dtype=torch.float32 if "embeds" in name else None)
    for name, x in own.items()
  }
  assert_same_pixels(expected, run_theirs(theirs, latents, **back, **call))


def test_the_shift_of_the_scheduler(tmp_path):
  theirs = peer.make(tmp_path, scheduler=dict(shift=3.0))
  ours = LuminaPipeline.from_pretrained(tmp_path, dtype="float32")
  call, latents = dict(prompt=PROMPT, height=32, width=32), noise(32, 32)
  assert_same_pixels(
    run_ours(ours, latents, **call, **STEPS),
    run_theirs(theirs, latents, **call, **STEPS),
  )


def test_the_default_samples_as_the_original(ours):
  """Beyond the trained size it differs from diffusers."""
  latents = noise(128, 64)
  call = dict(prompt=PROMPT, height=128, width=64, output_type="uint8")
  latents = latents.transpose(0, 2, 3, 1)
  theirs = ours(**call, latents=latents, compatibility="diffusers").images[0]
  own = ours(**call, latents=latents).images[0]
  assert np.abs(own.astype(int) - theirs).max() > 20


def test_diffusers_generates_the_same_from_what_we_save(ours, theirs, tmp_path):
  ours.save_pretrained(tmp_path / "saved", layout="diffusers", dtype="float32")
  again = peer.load(tmp_path / "saved")
  assert again.transformer.config.sample_size == 8
  call, latents = dict(prompt=PROMPT, height=64, width=64), noise(64, 64)
  a = run_theirs(again, latents, **call, **STEPS)
  assert_same_pixels(a, run_theirs(theirs, latents, **call, **STEPS))
  assert_same_pixels(a, run_ours(ours, latents, **call, **STEPS))


def test_our_export_generates_the_same(ours, tmp_path):
  ours.save_pretrained(tmp_path / "saved", dtype="float32")
  again = LuminaPipeline.from_pretrained(tmp_path / "saved")
  assert again.options == ours.options
  call = dict(prompt=PROMPT, output_type="uint8", seed=3, **STEPS)
  np.testing.assert_array_equal(again(**call).images, ours(**call).images)
