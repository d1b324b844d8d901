"""Prints, as JSON, errors of attention over 8 devices against the definition.

A line for each split, kernel and number of kv heads; in it, for each layout of
segments, the largest relative error of the output and of each gradient.
Arguments: one of `SPLITS`, then kernels, e.g. "context=8 chunked splash".
"""

import functools
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lumina_jax.attention import attend
from lumina_jax.attention.splash import Splash
from lumina_jax.parallel.mesh import RULES, make_mesh, parse_mesh

B, L, H, K = 2, 256, 8, 16
SPLITS = {
  "context=8": ("ring", "2", "4", "ulysses", "gather"),
  "data=2,context=4": ("ring", "2", "ulysses", "gather"),
  "tensor=2,context=4": ("2", "ulysses", "auto"),
  # Two rows do not divide over 4: all devices compute both.
  "data=4,context=2": ("auto",),
}


def segments() -> dict[str, np.ndarray]:
  """`i32[B, L]`: rows of one full, one short, and several samples."""
  ragged = np.zeros((B, L), np.int32)
  ragged[0, :157], ragged[1, :3] = 1, 1  # Most devices hold only padding.
  packed = np.zeros((B, L), np.int32)
  for number, (start, stop) in enumerate([(0, 40), (40, 41), (41, 200)], 1):
    packed[0, start:stop] = number
  packed[1, 100:256] = 7
  return {"full": np.ones((B, L), np.int32), "ragged": ragged, "packed": packed}


def definition(q, k, v, ids):
  """softmax(q k^T / sqrt(K)) v in float64 among equal segments, 0 without."""
  k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
  scores = jnp.einsum("blhk,bshk->bhls", q, k) / q.shape[-1] ** 0.5
  allowed = (ids[:, :, None] == ids[:, None]) & (ids != 0)[:, :, None]
  scores = jnp.where(allowed[:, None], scores, -1e30)
  weights = jax.nn.softmax(scores) * allowed[:, None]
  return jnp.einsum("bhls,bshk->blhk", weights, v)


def all_of(function):
  """Output and gradients of a weighted sum of it, jitted."""

  @jax.jit
  def run(q, k, v, weight, ids):
    def total(q, k, v):
      out = function(q, k, v, ids)
      return jnp.sum(out * weight), out

    grads, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads

  return run


def attend_rows(q, k, v, ids, **options):
  return attend(q, k, v, ids, ids, **options)


def error(found, expected) -> float:
  """Largest difference over the largest value; infinite if any is NaN."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected)
  worst = np.abs(found - expected).max() / np.abs(expected).max()
  return float(worst) if np.isfinite(worst) else float("inf")


def main(degrees: str, *kernels: str) -> None:
  with jax.enable_x64(True):
    expected, arrays = {}, {}
    for kv_heads in (H, H // 4):
      rng = np.random.default_rng(kv_heads)
      shapes = [(B, L, heads, K) for heads in (H, kv_heads, kv_heads, H)]
      arrays[kv_heads] = [rng.normal(size=s) for s in shapes]
      plain = all_of(definition)
      for name, ids in segments().items():
        found = plain(*arrays[kv_heads], ids)
        expected[kv_heads, name] = [np.asarray(x) for x in found]
  with (
    jax.set_mesh(make_mesh(parse_mesh(degrees))),
    nn.logical_axis_rules(RULES),
  ):
    for kernel, split, kv_heads in itertools.product(
      kernels, SPLITS[degrees], arrays
    ):
      if kernel == "dense" and split not in ("gather", "ulysses"):
        continue
      chosen = Splash(interpret=True) if kernel == "splash" else kernel
      run = all_of(
        functools.partial(attend_rows, kernel=chosen, sequence_split=split)
      )
      inputs = [jnp.asarray(x, jnp.float32) for x in arrays[kv_heads]]
      errors = {
        name: [
          error(a, b)
          for a, b in zip(
            run(*inputs, ids), expected[kv_heads, name], strict=True
          )
        ]
        for name, ids in segments().items()
      }
      line = dict(kernel=kernel, split=split, kv_heads=kv_heads, errors=errors)
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
