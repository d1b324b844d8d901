"""predict_velocity: sizes side by side, arguments, derivatives, messages."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.families import FAMILIES, NEXT, random_params, small

from lumina_jax import packing
from lumina_jax.attention import dot_product, kernels
from lumina_jax.backbone.config import NEXT_IMAGENET
from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.model import velocity
from lumina_jax.model.velocity import predict_velocity

# Shallow: nearly all of the time goes to compiling.
TEXT = dataclasses.replace(NEXT, depth=1, remat="none")
FLAG = dataclasses.replace(FAMILIES["flag_text"], depth=1, remat="none")
AUDIO = dataclasses.replace(FAMILIES["audio"], depth=1, remat="none")
LABEL = small(
  **NEXT_IMAGENET | dict(num_labels=10), depth=1, channels=1, remat="none"
)
TIME = np.float32([0.1, 0.5, 0.9])


def normal(*shape, seed=0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def params_of(cfg):
  """Random parameters that make velocities of about one."""
  params = random_params(cfg)
  last = jax.tree.map(lambda x: 0.05 * x, params["final"])
  return params | {"final": last}


def text_of(count: int) -> dict[str, np.ndarray]:
  """Features; each sample has a word less than the one before."""
  mask = np.arange(5) < 5 - np.arange(count)[:, None]
  return {"text": normal(count, 5, 24, seed=1), "text_mask": mask.astype(int)}


def one(given, i):
  """The arguments of one sample alone."""
  return {key: value[i : i + 1] for key, value in given.items()}


@pytest.fixture(scope="module")
def params():
  return params_of(TEXT)


@pytest.fixture(scope="module")
def label_params():
  return params_of(LABEL)


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
  "cfg",
  [TEXT, pytest.param(FLAG, marks=pytest.mark.e2e)],
  ids=["next", "flag"],
)
def test_samples_of_different_sizes_do_not_depend_on_each_other(cfg):
  params, given = params_of(cfg), text_of(3)
  latents = [normal(h, w, 4, seed=h + w) for h, w in ((4, 6), (8, 4), (2, 2))]
  together = predict_velocity(cfg, params, latents, TIME, **given)
  assert [x.shape for x in together] == [x.shape for x in latents]
  for i, x in enumerate(latents):
    alone = predict_velocity(
      cfg, params, x[None], float(TIME[i]), **one(given, i)
    )
    assert_close(together[i], alone[0])


def test_a_batch_is_a_list_and_numpy_is_jax(params):
  x, given = normal(3, 8, 6, 4), text_of(3)
  batch = predict_velocity(TEXT, params, x, TIME, **given)
  assert isinstance(batch, np.ndarray) and batch.shape == x.shape
  pieces = predict_velocity(TEXT, params, list(x), TIME, **given)
  np.testing.assert_array_equal(batch, np.stack(pieces))
  on_device = jax.tree.map(jnp.asarray, (params, x, TIME, given))
  *args, given = on_device
  again = predict_velocity(TEXT, *args, **given)
  assert isinstance(again, jax.Array)
  np.testing.assert_array_equal(again, batch)
  # One time for all is that time for each.
  same = predict_velocity(TEXT, params, x, np.full(3, 0.5), **given)
  single = predict_velocity(TEXT, params, x, 0.5, **given)
  np.testing.assert_array_equal(single, same)
  assert np.abs(single - batch).max() > 1e-3


def test_masked_text_does_not_matter(params):
  x, given = normal(3, 8, 6, 4), text_of(3)
  expected = predict_velocity(TEXT, params, x, 0.5, **given)
  masked = given["text_mask"][..., None] == 0
  changed = given | {"text": np.where(masked, 1e3, given["text"])}
  found = predict_velocity(TEXT, params, x, 0.5, **changed)
  np.testing.assert_array_equal(found, expected)
  # Without a mask all count; without any text the result is finite.
  text = {"text": given["text"]}
  everything = predict_velocity(TEXT, params, x, 0.5, **text)
  ones = text | {"text_mask": np.ones((3, 5))}
  np.testing.assert_array_equal(
    predict_velocity(TEXT, params, x, 0.5, **ones), everything
  )
  assert np.abs(everything[1] - expected[1]).max() > 1e-3
  nothing = text | {"text_mask": np.zeros((3, 5), bool)}
  assert np.isfinite(predict_velocity(TEXT, params, x, 0.5, **nothing)).all()


def test_texts_of_different_lengths_are_masked(params):
  x, given = normal(3, 8, 6, 4), text_of(3)
  expected = predict_velocity(TEXT, params, x, TIME, **given)
  pieces = [t[: 5 - i] for i, t in enumerate(given["text"])]
  for text in (pieces, tuple(pieces), [t.tolist() for t in pieces]):
    found = predict_velocity(TEXT, params, x, TIME, text=text)
    assert isinstance(found, np.ndarray)
    assert_close(found, expected)
  on_device = [jnp.asarray(t) for t in pieces]
  found = predict_velocity(TEXT, params, list(x), TIME, text=on_device)
  assert all(isinstance(v, np.ndarray) for v in found)
  assert_close(np.stack(found), expected)
  # Texts of one length form a batch, and take a mask; lists are arrays.
  mask = given["text_mask"].tolist()
  text = list(given["text"])
  for words in (text, given["text"], given["text"].tolist()):
    found = predict_velocity(
      TEXT, params, x.tolist(), TIME.tolist(), text=words, text_mask=mask
    )
    assert isinstance(found, list)
    assert_close(np.stack(found), expected)


def test_audio_has_one_axis():
  params, given = params_of(AUDIO), text_of(2)
  latents = normal(2, 12, 5)
  batch = predict_velocity(AUDIO, params, latents, 0.25, **given)
  assert batch.shape == latents.shape
  pieces = predict_velocity(AUDIO, params, list(latents), 0.25, **given)
  np.testing.assert_array_equal(batch, jnp.stack(pieces))


@pytest.mark.e2e
def test_audio_of_different_lengths_side_by_side():
  params, given = params_of(AUDIO), text_of(2)
  latents = [normal(7, 5), normal(4, 5, seed=1)]
  together = predict_velocity(AUDIO, params, latents, 0.25, **given)
  for i, x in enumerate(latents):
    alone = predict_velocity(AUDIO, params, x[None], 0.25, **one(given, i))
    assert_close(together[i], alone[0])


def test_derivatives_and_jit_pass_through(label_params):
  x, step = normal(1, 16, 16, 1), normal(1, 16, 16, 1, seed=1)

  def loss(x, time, label):
    out = predict_velocity(LABEL, label_params, x, time, label=label)
    return jnp.sum(out**2)

  args = TIME[:1], np.array([3])
  value, slopes = jax.jit(jax.value_and_grad(loss))(x, *args)
  np.testing.assert_allclose(value, loss(x, *args), rtol=1e-5)
  ends = [loss(x + s * 1e-2 * step, *args) for s in (1, -1)]
  expected = (ends[0] - ends[1]) / 2e-2
  np.testing.assert_allclose(jnp.vdot(slopes, step), expected, rtol=1e-2)


def test_a_rule_replaces_that_of_the_config(label_params):
  cfg = dataclasses.replace(LABEL, rope_linear=2.0, rope_ntk=3.0)
  x = normal(2, 8, 8, 1)

  def predict(rope, time=0.5):
    return predict_velocity(cfg, label_params, x, time, label=[1, 2], rope=rope)

  expected = predict(None)
  both = RopeScaling("linear", scale=2.0, base_factor=3.0)
  assert_close(predict(both), expected)
  assert np.abs(predict(RopeScaling("none")) - expected).max() > 1e-3
  # Linear before the watershed and NTK from there on, for each by its time.
  rule = RopeScaling("watershed", scale=[2, 3])
  split = predict(rule, np.float32([0.2, 0.3]))
  assert_close(split[0], predict(RopeScaling("linear", 2.0), 0.2)[0])
  assert_close(split[1], predict(RopeScaling("ntk_plain", 3.0), 0.3)[1])


@pytest.mark.e2e
def test_proportional_attention_counts_the_tokens_of_each_sample(label_params):
  latents = [normal(8, 8, 1), normal(4, 4, 1)]  # 16 and 4 tokens.

  def predict(base):
    return predict_velocity(
      LABEL,
      label_params,
      latents,
      0.5,
      label=[1, 2],
      proportional_attention_base=base,
    )

  plain = predict(None)
  for i, tokens in enumerate((16, 4)):
    assert_close(predict(tokens)[i], plain[i])
    assert np.abs(predict(tokens)[1 - i] - plain[1 - i]).max() > 1e-4


def test_nearby_resolutions_share_one_program(label_params):
  def predict(h, w):
    x = np.zeros((1, h, w, 1), np.float32)
    predict_velocity(LABEL, label_params, x, 0.5, label=0)

  predict(16, 16)  # 64 tokens.
  programs = velocity._apply._cache_size()
  for h, w in ((10, 20), (14, 18), (2, 100)):
    predict(h, w)  # 50, 63 and 50.
  assert velocity._apply._cache_size() == programs


def test_rows_have_eight_lengths_an_octave_and_waste_an_eighth():
  counts = range(1, 5000)
  lengths = [packing.ladder(n) for n in counts]
  pairs = zip(counts, lengths, strict=True)
  assert all(n <= L <= max(1.125 * n, n + 15) for n, L in pairs)
  assert lengths == sorted(lengths)
  for start in (128, 256, 1024):
    octave = lengths[start : 2 * start]  # start + 1 to 2 start tokens.
    assert len(set(octave)) == 8


@pytest.mark.parametrize(
  ("given", "named"),
  [
    (dict(latents=[]), "latents is empty"),
    (dict(latents=3.0), "latents has shape (); expected B x (axis 0"),
    (dict(latents="abc"), "latents is no array of real numbers (dtype <U3)"),
    (dict(latents=[1j * normal(8, 8, 4)]), "latents[0] is no array of real"),
    (dict(params={"backbone": {}}), "pass params['backbone']"),
    (dict(time=None), "time is no array of real numbers"),
    (dict(time=[[1], [1, 2]]), "time is no array of real numbers"),
    (dict(text=normal(2, 0, 24)), "(2, 0, 24); expected (2, S, 24)"),
    (dict(text_mask=[[1], [1, 2]]), "text_mask is no array of real numbers"),
    (dict(proportional_attention_base="all"), "= 'all': must be a fin"),
    (
      dict(latents=normal(2, 4, 8, 8)),
      "(2, 4, 8, 8); expected B x (axis 0, axis 1, 4)",
    ),
    (
      dict(latents=normal(8, 8, 4)),
      "(8, 8, 4); expected B x (axis 0, axis 1, 4), chan",
    ),
    (
      dict(latents=[normal(8, 8, 4), normal(8, 8)]),
      "latents[1] has shape (8, 8); expected (axis 0, axis 1, 4)",
    ),
    (dict(latents=normal(2, 8, 7, 4)), "size 7 of (8, 7)"),
    (dict(time=1.5), "time = 1.5: must be from 0 (noise) to 1 (data)"),
    (dict(time=-0.1), "time = -0.1"),
    (dict(time=np.float32([0.5, np.nan])), "time = nan"),
    (dict(time=[250, 0.5]), "time = 250.0: must be from 0"),
    (dict(time=TIME), "time has shape (3,); expected one number, or 2"),
    (
      dict(text=None, text_mask=None),
      "text is missing: pass features f32[B, S, 24]",
    ),
    (dict(text=normal(2, 5, 23)), "(2, 5, 23); expected (2, S, 24)"),
    (dict(text=normal(3, 5, 24)), "(3, 5, 24); expected (2, S, 24)"),
    (dict(text=normal(2, 24)), "(2, 24); expected (2, S, 24)"),
    (dict(text_mask=np.ones((2, 4))), "(2, 4); expected (2, 5)"),
    (dict(text_mask=np.ones(5)), "text_mask has shape (5,)"),
    (dict(text=[], text_mask=None), "text is empty"),
    (
      dict(text=[normal(5, 24), normal(3, 23)], text_mask=None),
      "text[1] has shape (3, 23); expected (S, 24)",
    ),
    (
      dict(text=[normal(24), normal(24)], text_mask=None),
      "text[0] has shape (24,); expected (S, 24)",
    ),
    (
      dict(text=[normal(5, 24)], text_mask=None),
      "text has shape (1, 5, 24); expected (2, S, 24)",
    ),
    (dict(text_mask=[[1, 1, 1, 1, 0]]), "(1, 5); expected (2, 5)"),
    (dict(label=[1, 2]), "label: this network has no classes"),
    (dict(rope=2.0), "rope = 2.0: expected a RopeScaling"),
    (dict(rope="yarn"), "rope = 'yarn': expected a RopeScaling"),
    (dict(rope=RopeScaling("linear", TIME)), "rope.scale has shape (3,)"),
    (
      dict(rope=RopeScaling("watershed", 2.0, watershed=[0.1, 0.2, 0.3])),
      "rope.watershed has shape (3,); expected one number, or 2",
    ),
    (dict(rope=RopeScaling("yarn", 2.0)), "rule 'yarn' needs trained"),
    (dict(proportional_attention_base=1), "proportional_attention_base = 1"),
  ],
)
def test_arguments_that_do_not_fit_are_named(given, named):
  usual = dict(latents=normal(2, 8, 8, 4), time=0.5, **text_of(2))
  with pytest.raises(ValueError, match=re.escape(named)):
    predict_velocity(TEXT, **dict(params=None) | usual | given)


@pytest.mark.parametrize(
  ("given", "named"),
  [
    (
      dict(label=None),
      "label is missing: pass a class from 0 to 9, or 10 for the null",
    ),
    (dict(label=[1, 11]), "label = 11: must be from 0 to 10"),
    (dict(label=-1), "label = -1: must be from 0 to 10"),
    (dict(label=1.7), "label has type float64; pass integers"),
    (dict(label=jnp.ones(2)), "label has type float32; pass integers"),
    (dict(label=True), "label has type bool; pass integers"),
    (dict(label=[1, 2, 3]), "label has shape (3,); expected one number, or 2"),
    (dict(text=normal(2, 5, 24)), "text: this network takes no text"),
    (dict(text_mask=np.ones((2, 5))), "text_mask without text"),
  ],
)
def test_arguments_of_a_class_network_that_do_not_fit(given, named):
  usual = dict(latents=normal(2, 8, 8, 1), time=0.5, label=1)
  with pytest.raises(ValueError, match=re.escape(named)):
    predict_velocity(LABEL, None, **usual | given)


def test_audio_takes_latents_without_a_height():
  expected = "latents has shape (1, 5, 20, 4); expected B x (axis 0, 5)"
  with pytest.raises(ValueError, match=re.escape(expected)):
    predict_velocity(AUDIO, None, normal(1, 5, 20, 4), 0.5, **text_of(1))


@pytest.mark.parametrize("on", [np.asarray, jnp.asarray], ids=["host", "jax"])
def test_a_kernel_that_reads_lengths_reads_the_right_words(
  params, on, monkeypatch
):
  """The mask may have gaps; cuDNN needs the words that count first."""
  x, text = normal(1, 4, 6, 4), normal(1, 5, TEXT.text_width)
  given = dict(text=on(text), text_mask=on([[0, 1, 1, 0, 1]]))
  expected = predict_velocity(TEXT, params, x, 0.3, **given)

  def by_length(q, k, v, q_segments, kv_segments):
    words = (kv_segments != 0).sum(axis=1, keepdims=True)
    first = jnp.arange(kv_segments.shape[1]) < words
    return dot_product.dense(q, k, v, q_segments, first.astype(jnp.int32))

  monkeypatch.setattr(kernels, "choose", lambda *_, **__: by_length)
  other = dataclasses.replace(TEXT, norm_eps=1.001e-5)  # Compiled anew.
  found = predict_velocity(other, params, x, 0.3, **given)
  np.testing.assert_allclose(found, expected, atol=2e-5)
