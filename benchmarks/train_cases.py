"""Networks and sizes of `benchmarks.train_step`, and what they keep."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import forward
from benchmarks.peer import Sample
from lumina_jax.backbone import PUBLISHED, ModelConfig, shapes

# Bytes that a layer keeps for its backward pass, of each token and channel of
# the stream (ours 200 as XLA compiles it for CPUs, torch eager 130); and bytes
# of each parameter, its state and gradient.
KEPT, STATE = 200, 20


def _small(width: int, depth: int, heads: int) -> ModelConfig:
  sizes = dict(width=width, cond_width=width, text_width=width, dtype="float32")
  base = PUBLISHED["next_dit_t2i_2b_gqa"]
  return dataclasses.replace(
    base, depth=depth, heads=heads, kv_heads=heads // 2, **sizes
  )


NETWORKS = {
  "tiny": _small(32, 2, 2),
  "small": _small(384, 4, 6),
  "600m": dataclasses.replace(
    PUBLISHED["next_dit_t2i_2b"], width=1536, depth=16
  ),
  "2b_gqa": PUBLISHED["next_dit_t2i_2b_gqa"],
}


class Case(NamedTuple):
  """One line of the table."""

  network: str
  cfg: ModelConfig
  tokens: int
  rows: int
  words: int

  @property
  def sample(self) -> Sample:
    """Latents and features of text, one sample a row and no padding.

    Raises:
      ValueError: if so many tokens are no square.
    """
    side = math.isqrt(self.tokens)
    if side**2 != self.tokens:
      raise ValueError(f"tokens = {self.tokens}: no square of patches")
    side *= self.cfg.patch[0]
    sample = forward.random_sample(self.cfg, side, self.rows, self.words)
    ids = np.arange(self.rows, dtype=np.int32)[:, None]
    condition = sample.condition._replace(sample_ids=ids)
    return sample._replace(condition=condition)


def remat_of(wish: str, cfg: ModelConfig, tokens: int, room: float) -> str:
  """ "none" where all that layers keep fits beside the state, else "full".

  The same on both sides, so that they compute the same.

  Args:
    wish: a policy of `remat.POLICIES`, or "auto".
    cfg: of the network.
    tokens: of all rows.
    room: bytes of the device.
  """
  if wish != "auto":
    return wish
  needed = STATE * sum(x.size for x in jax.tree.leaves(shapes(cfg)))
  needed += KEPT * tokens * cfg.width * cfg.depth
  return "none" if needed < room else "full"


def room() -> float:
  """Bytes of the first device that JAX may use."""
  stats = jax.devices()[0].memory_stats()
  return stats["bytes_limit"] if stats else math.inf


def make_cases(args: Any) -> dict[str, list[Case]]:
  """Cases of each network, by the flags and by what suits the backend."""
  on_cpu = jax.default_backend() == "cpu"
  networks = args.networks or (["small"] if on_cpu else ["600m", "2b_gqa"])
  sizes = args.tokens or (
    ["256", "1024"] if on_cpu else ["1024", "4096", "16384"]
  )
  row_tokens = args.row_tokens or (1024 if on_cpu else 8192)

  def case(name, tokens):
    cfg = dataclasses.replace(
      NETWORKS[name], text_query=True, unroll=args.unroll
    )
    if args.dtype:
      cfg = dataclasses.replace(cfg, dtype=args.dtype)
    rows = max(1, row_tokens // tokens)
    remat = remat_of(args.remat, cfg, rows * tokens, room())
    cfg = dataclasses.replace(cfg, remat=remat)
    return Case(name, cfg, tokens, rows, args.words)

  return {name: [case(name, int(n)) for n in sizes] for name in networks}
