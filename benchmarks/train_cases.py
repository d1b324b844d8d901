"""Networks and sizes of `benchmarks.train_step`."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import forward
from benchmarks.peer import Sample
from lumina_jax.backbone import PUBLISHED, ModelConfig, shapes

# Bytes that a layer keeps for its backward pass per token and channel (200 as
# XLA compiles ours for CPUs, torch eager 130), and bytes of the training state
# per parameter, gradient included.
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
  """One row of the table."""

  network: str
  cfg: ModelConfig
  tokens: int
  rows: int
  words: int

  @property
  def sample(self) -> Sample:
    """Latents and text features, one sample per row without padding.

    Raises:
      ValueError: if the number of tokens is not a square.
    """
    side = math.isqrt(self.tokens)
    if side**2 != self.tokens:
      raise ValueError(f"tokens = {self.tokens}: must be a square, e.g. 256")
    side *= self.cfg.patch[0]
    sample = forward.random_sample(self.cfg, side, self.rows, self.words)
    ids = np.arange(self.rows, dtype=np.int32)[:, None]
    condition = sample.condition._replace(sample_ids=ids)
    return sample._replace(condition=condition)


def choose_remat(
  name: str, cfg: ModelConfig, tokens: int, memory: float
) -> str:
  """The policy of both sides; "auto" is "none" if that fits, else "full".

  Args:
    name: a policy of `remat.POLICIES`, or "auto".
    cfg: config of the network.
    tokens: tokens of all rows.
    memory: bytes of the device.
  """
  if name != "auto":
    return name
  needed = STATE * sum(x.size for x in jax.tree.leaves(shapes(cfg)))
  needed += KEPT * tokens * cfg.width * cfg.depth
  return "none" if needed < memory else "full"


def device_memory() -> float:
  """Bytes of the first device that JAX may use."""
  stats = jax.devices()[0].memory_stats()
  return stats["bytes_limit"] if stats else math.inf


def make_cases(args: Any) -> dict[str, list[Case]]:
  """Cases of each network, from flags and defaults of the backend."""
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
    remat = choose_remat(args.remat, cfg, rows * tokens, device_memory())
    cfg = dataclasses.replace(cfg, remat=remat)
    return Case(name, cfg, tokens, rows, args.words)

  return {name: [case(name, int(n)) for n in sizes] for name in networks}
