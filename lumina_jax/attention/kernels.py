"""Which kernel multiplies: by platform, unless one is asked for by name."""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp

from lumina_jax.attention import library, splash
from lumina_jax.attention.chunked import CPU_SCORES, SCORES, Chunked

NAMES = ("auto", "splash", "cudnn", "chunked", "dense")

log = logging.getLogger(__name__)


def choose(
  name: Any = "auto",
  *,
  head_dim: int = 128,
  dtype: jnp.dtype = jnp.float32,
  packed: bool = True,
  ring: bool = False,
  strict: bool = False,
) -> Any:
  """A `Kernel`, or a function that attends to all keys.

  "auto" is splash on TPUs, cuDNN on GPUs and the chunked one elsewhere and
  wherever these cannot serve. So is any other name that cannot; why it cannot
  is logged, once.

  Args:
    name: one of `NAMES`, or what it shall return.
    head_dim: K.
    dtype: of queries.
    packed: whether rows may hold several samples.
    ring: whether it must work on a part of the keys at a time.
    strict: refuses a name that cannot serve.

  Raises:
    ValueError: if there is no such name, or if strict.
  """
  if not isinstance(name, str):
    return name
  check_name(name)
  platform, kind = device()
  refusals = {
    "splash": splash.refuses(platform, head_dim),
    "cudnn": library.refuses_cudnn(platform, head_dim, dtype, packed),
    "dense": "",
    "chunked": "",
  }
  if ring:
    for whole in ("cudnn", "dense"):
      refusals[whole] = refusals[whole] or f"{whole} cannot serve a ring"
  usual = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(
    platform, "chunked"
  )
  for wanted in (usual if name == "auto" else name, usual):
    if not refusals[wanted]:
      name = wanted
      break
    if strict and name != "auto":
      raise ValueError(
        f"attention_kernel {name!r}: {refusals[name]}; use 'auto'"
      )
    _log_once(f"attention without {wanted}: {refusals[wanted]}")
  else:
    name = "chunked"
  if name == "splash":
    return splash.Splash(*splash.blocks(kind, head_dim))
  if name == "chunked":
    return Chunked(CPU_SCORES if platform == "cpu" else SCORES)
  return {"cudnn": library.cudnn, "dense": library.dense}[name]


def check_name(name: str) -> None:
  """Checks `ModelConfig.attention_kernel`.

  Raises:
    ValueError: if there is no such kernel.
  """
  if name not in NAMES:
    raise ValueError(f"attention_kernel {name!r}: use one of {NAMES}")


def device() -> tuple[str, str]:
  """Platform and kind of the devices that a program is made for.

  The mesh tells: a program for TPUs may be compiled on a machine without.
  """
  found = jax.sharding.get_abstract_mesh().abstract_device
  if found is None:
    return jax.default_backend(), jax.devices()[0].device_kind
  return found.platform, found.device_kind


@functools.lru_cache
def _log_once(message: str) -> None:
  log.warning(message)
