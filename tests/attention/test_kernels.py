"""Which kernel is selected, and what each kernel computes."""

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from lumina_jax.attention import attend, dot_product, kernels
from lumina_jax.attention.chunked import CPU_SCORES, Chunked
from lumina_jax.attention.kernel import merge
from lumina_jax.attention.splash import Splash

SPLASH = Splash(interpret=True)


def on(platform, kind=""):
  """A mesh of an abstract device."""
  device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
  return jax.sharding.use_abstract_mesh(
    AbstractMesh(
      (2,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device
    )
  )


def test_auto_depends_on_the_platform():
  bf16 = functools.partial(kernels.choose, dtype=jnp.bfloat16)
  assert bf16() == Chunked(CPU_SCORES)
  with on("tpu", "TPU v5 lite"):
    assert isinstance(bf16(), Splash)
  with on("tpu", "TPU v6 lite"):
    assert bf16().forward_blocks == (1024, 1024)
    assert bf16(head_dim=256).forward_blocks == (512, 512)
  with on("gpu", "NVIDIA H100"):
    assert bf16(packed=False) is dot_product.cudnn
    assert isinstance(bf16(packed=True), Chunked)


@pytest.mark.parametrize(
  ("platform", "arguments", "reason"),
  [
    ("tpu", dict(head_dim=512), "heads of 256 channels, not 512"),
    ("gpu", dict(packed=True), "several samples"),
    ("gpu", dict(packed=False, dtype=jnp.float32), "float32"),
    ("gpu", dict(packed=False, dtype=jnp.bfloat16, head_dim=130), "not of 130"),
    ("gpu", dict(packed=False, dtype=jnp.bfloat16, ring=True), "a ring"),
  ],
)
def test_a_fallback_logs_its_reason_once(platform, arguments, reason, caplog):
  kernels._log_once.cache_clear()
  with on(platform), caplog.at_level(logging.WARNING):
    for _ in range(2):
      assert isinstance(kernels.choose(**arguments), Chunked)
  (record,) = caplog.records
  assert reason in record.message


def test_a_named_kernel_is_returned_or_falls_back(caplog):
  kernels._log_once.cache_clear()
  strict = functools.partial(kernels.choose, strict=True)
  assert strict("dense") is dot_product.dense
  assert strict(SPLASH) is SPLASH
  assert kernels.choose("dense", ring=True) == Chunked(CPU_SCORES)
  assert kernels.choose("splash") == Chunked(CPU_SCORES)
  assert "splash runs on TPUs, not on 'cpu'" in caplog.text


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(name="cudnn"), r"'cudnn': .* not on 'cpu'; use 'auto'"),
    (dict(name="dense", ring=True), "'dense': dense cannot serve a ring"),
    (dict(name="splesh"), r"kernel 'splesh'; did you mean 'splash'.* cudnn"),
  ],
)
def test_strict_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    kernels.choose(strict=True, **arguments)


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


@pytest.mark.parametrize("channels", [24, 72, 128])
def test_splash_equals_dense_at_published_head_sizes(channels):
  inputs, segments = arrays(256, 256, 2, 1, channels)
  close(
    both(SPLASH, inputs, segments), both("dense", inputs, segments), 2e-6
  )  # fmt: skip


@pytest.mark.parametrize(("length", "keys"), [(40, 77), (300, 130)])
def test_splash_takes_any_length(length, keys):
  """Padded to one tile, and to several."""
  kernel = Splash((256, 128), (128, 256), interpret=True)
  inputs, segments = arrays(length, keys, 4, 2, 16)
  close(both(kernel, inputs, segments), both("dense", inputs, segments), 3e-6)


@pytest.mark.parametrize("kernel", [SPLASH, "chunked"])
def test_bfloat16_is_as_accurate_as_dense(kernel):
  exact = both("dense", *arrays(128, 128, 2, 2, 64))
  inputs, segments = arrays(128, 128, 2, 2, 64, jnp.bfloat16)
  ours, dense = (both(k, inputs, segments) for k in (kernel, "dense"))
  for found, theirs, value in zip(ours, dense, exact, strict=True):
    found, theirs, value = (
      np.asarray(x, np.float32) for x in (found, theirs, value)
    )
    error, usual = (np.linalg.norm(x - value) for x in (found, theirs))
    assert 0 < error < 1.5 * usual + 1e-3 * np.linalg.norm(value)


def test_merging_two_sets_of_keys_attends_to_both():
  (q, k, v), segments = arrays(40, 60, 2, 2, 8)
  heads_first = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
  q, k, v = heads_first
  kernel = Chunked()

  def part(keys):
    ids = segments[0], segments[1][:, keys]
    return kernel.forward(q, k[:, :, keys], v[:, :, keys], *ids)

  whole = part(slice(None))
  merged = merge(part(slice(0, 15)), part(slice(15, None)))
  for found, expected in zip(merged, whole, strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-6)
  assert np.isneginf(whole[1][0, :, 20:]).all()
  nothing = jnp.zeros_like(whole[0]), jnp.full_like(whole[1], -jnp.inf)
  out, lse = merge(nothing, nothing)
  assert not out.any() and np.isneginf(lse).all()


def test_cudnn_receives_lengths(monkeypatch):
  """XLA stands in for cuDNN, with the lengths that cuDNN would get."""
  passed = {}

  def attention(q, k, v, **options):
    passed.update(options)
    options["implementation"] = "xla"
    return original(q, k, v, **options)

  original = jax.nn.dot_product_attention
  monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
  inputs, _ = arrays(64, 32, 4, 2, 16)
  q_segments = (np.arange(64) < np.array([[64], [20]])).astype(np.int32)
  kv_segments = (np.arange(32) < np.array([[7], [0]])).astype(np.int32)
  segments = q_segments, kv_segments
  found = both(dot_product.cudnn, inputs, segments)
  assert passed["implementation"] == "cudnn" and "mask" not in passed
  assert all(np.isfinite(x).all() for x in found)
  monkeypatch.undo()
  close(found, both("dense", inputs, segments), 2e-6)
  assert not found[0][1].any()  # The second row has no key.


@pytest.mark.parametrize("channels", [72, 128])
def test_cudnn_lowers_for_gpus(channels, monkeypatch):
  """Both passes, as far as a machine without a GPU can show."""
  for name in ("check_cudnn_version", "check_compute_capability"):
    monkeypatch.setattr(fused_attention_stablehlo, name, lambda *_: 91_000)
  inputs, segments = arrays(256, 128, 8, 2, channels, jnp.bfloat16)

  def loss(q, k, v):
    return attend(q, k, v, *segments, kernel=dot_product.cudnn).sum()

  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmaxBackward" in text


def test_memory_is_linear_in_the_length():
  """Temporaries of both passes at 32, 64 and 128 thousand tokens, one head."""

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
