"""Which kernel serves, and what each of them computes."""

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from lumina_jax.attention import attend, kernels, library
from lumina_jax.attention.chunked import CPU_SCORES, Chunked
from lumina_jax.attention.kernel import merge
from lumina_jax.attention.splash import Splash

SPLASH = Splash(interpret=True)


def on(platform, kind=""):
  """A mesh of a device that need not be there."""
  device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
  return jax.sharding.use_abstract_mesh(
    AbstractMesh(
      (2,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device
    )
  )


def test_the_platform_chooses():
  bf16 = functools.partial(kernels.choose, dtype=jnp.bfloat16)
  assert bf16() == Chunked(CPU_SCORES)  # here
  with on("tpu", "TPU v5 lite"):
    assert isinstance(bf16(), Splash)
  with on("tpu", "TPU v6 lite"):
    assert bf16().forward_blocks == (1024, 1024)
    assert bf16(head_dim=256).forward_blocks == (512, 512)
  with on("gpu", "NVIDIA H100"):
    assert bf16(packed=False) is library.cudnn
    assert isinstance(bf16(packed=True), Chunked)


@pytest.mark.parametrize(
  ("platform", "how", "why"),
  [
    ("tpu", dict(head_dim=512), "heads of 256 channels, not 512"),
    ("gpu", dict(packed=True), "several samples"),
    ("gpu", dict(packed=False, dtype=jnp.float32), "float32"),
    ("gpu", dict(packed=False, dtype=jnp.bfloat16, head_dim=130), "not of 130"),
    ("gpu", dict(packed=False, dtype=jnp.bfloat16, ring=True), "a ring"),
  ],
)
def test_a_kernel_that_cannot_serve_says_why_once(platform, how, why, caplog):
  kernels._log_once.cache_clear()
  with on(platform), caplog.at_level(logging.WARNING):
    for _ in range(2):
      assert isinstance(kernels.choose(**how), Chunked)
  (record,) = caplog.records
  assert why in record.message


def test_one_asked_for_by_name_serves_or_gives_way(caplog):
  kernels._log_once.cache_clear()
  strict = functools.partial(kernels.choose, strict=True)
  assert strict("dense") is library.dense
  assert strict(SPLASH) is SPLASH
  with pytest.raises(ValueError, match=r"'cudnn': .* not on 'cpu'; use 'auto'"):
    strict("cudnn")
  with pytest.raises(ValueError, match="'dense': dense cannot serve a ring"):
    strict("dense", ring=True)
  assert kernels.choose("dense", ring=True) == Chunked(CPU_SCORES)
  assert kernels.choose("splash") == Chunked(CPU_SCORES)
  assert "splash runs on TPUs, not on 'cpu'" in caplog.text
  with pytest.raises(ValueError, match="'flash': use one of"):
    kernels.choose("flash")


def arrays(length, keys, heads, kv_heads, channels, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  shapes = ((length, heads), (keys, kv_heads), (keys, kv_heads))
  q, k, v = (
    jnp.asarray(rng.normal(size=(2, n, h, channels)), dtype) for n, h in shapes
  )
  q_segments = np.ones((2, length), np.int32)
  kv_segments = np.ones((2, keys), np.int32)
  q_segments[0, length // 2 :] = 2  # Half of them without a key,
  kv_segments[1, keys // 3 :] = 0  # and padding.
  return (q, k, v), (q_segments, kv_segments)


def both(kernel, inputs, segments):
  def loss(q, k, v):
    out = attend(q, k, v, *segments, kernel=kernel)
    return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

  grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
  return out, *grads


def close(found, expected, tolerance):
  for a, b in zip(found, expected, strict=True):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("channels", [24, 48, 72, 96, 128])
def test_splash_equals_dense_at_every_published_head(channels):
  inputs, segments = arrays(256, 256, 2, 1, channels)
  close(
    both(SPLASH, inputs, segments), both("dense", inputs, segments), 2e-6
  )  # fmt: skip


@pytest.mark.parametrize(("length", "keys"), [(40, 77), (300, 130), (640, 128)])
def test_splash_takes_any_length(length, keys):
  """Padded to tiles within, and to several tiles."""
  kernel = Splash((256, 128), (128, 256), interpret=True)
  inputs, segments = arrays(length, keys, 4, 2, 16)
  close(both(kernel, inputs, segments), both("dense", inputs, segments), 3e-6)


@pytest.mark.parametrize("kernel", [SPLASH, "chunked"])
def test_bfloat16_is_as_near_as_dense(kernel):
  exact = both("dense", *arrays(128, 128, 2, 2, 64))
  inputs, segments = arrays(128, 128, 2, 2, 64, jnp.bfloat16)
  ours, dense = (both(k, inputs, segments) for k in (kernel, "dense"))
  for found, theirs, value in zip(ours, dense, exact, strict=True):
    found, theirs, value = (
      np.asarray(x, np.float32) for x in (found, theirs, value)
    )
    error, usual = (np.linalg.norm(x - value) for x in (found, theirs))
    assert 0 < error < 1.5 * usual + 1e-3 * np.linalg.norm(value)


def test_merging_two_parts_gives_the_whole():
  (q, k, v), segments = arrays(40, 60, 2, 2, 8)
  heads_first = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
  q, k, v = heads_first
  kernel = Chunked()

  def part(keys):
    of = segments[0], segments[1][:, keys]
    return kernel.forward(q, k[:, :, keys], v[:, :, keys], *of)

  whole = part(slice(None))
  merged = merge(part(slice(0, 15)), part(slice(15, None)))
  for found, expected in zip(merged, whole, strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-6)
  assert np.isneginf(whole[1][0, :, 20:]).all()
  nothing = jnp.zeros_like(whole[0]), jnp.full_like(whole[1], -jnp.inf)
  out, lse = merge(nothing, nothing)
  assert not out.any() and np.isneginf(lse).all()


def test_cudnn_is_handed_lengths(monkeypatch):
  """What it would compute is XLA's, given the same lengths."""
  given = {}

  def attention(q, k, v, **how):
    given.update(how)
    how["implementation"] = "xla"
    return plain(q, k, v, **how)

  plain = jax.nn.dot_product_attention
  monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
  inputs, _ = arrays(64, 32, 4, 2, 16)
  q_segments = (np.arange(64) < np.array([[64], [20]])).astype(np.int32)
  kv_segments = (np.arange(32) < np.array([[7], [0]])).astype(np.int32)
  segments = q_segments, kv_segments
  found = both(library.cudnn, inputs, segments)
  assert given["implementation"] == "cudnn" and "mask" not in given
  assert all(np.isfinite(x).all() for x in found)
  monkeypatch.undo()
  close(found, both("dense", inputs, segments), 2e-6)
  assert not found[0][1].any()  # No key at all.


@pytest.mark.parametrize("channels", [48, 72, 96, 128])
def test_cudnn_lowers_for_gpus(channels, monkeypatch):
  """Forwards and backwards, as far as a machine without a GPU can say."""
  for name in ("check_cudnn_version", "check_compute_capability"):
    monkeypatch.setattr(fused_attention_stablehlo, name, lambda *_: 91_000)
  inputs, segments = arrays(256, 128, 8, 2, channels, jnp.bfloat16)

  def loss(q, k, v):
    return attend(q, k, v, *segments, kernel=library.cudnn).sum()

  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmaxBackward" in text


def test_memory_grows_with_the_length_and_not_with_its_square():
  """Temporaries of both passes: 32, 64 and 128 thousand tokens, one head."""

  def temporaries(length):
    shape = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(q, k, v, segments):
      return attend(q, k, v, segments, segments).astype(jnp.float32).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(
      shape, shape, shape, segments
    )
    return compiled.compile().memory_analysis().temp_size_in_bytes

  sizes = [temporaries(n * 1024) for n in (32, 64, 128)]
  for shorter, longer in itertools.pairwise(sizes):
    assert 1.5 < longer / shorter < 2.5, sizes
