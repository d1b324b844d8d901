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
) -> Any:
  """A `Kernel`, or a function that attends to all keys.

  "auto" is splash on TPUs, cuDNN on GPUs and the chunked one elsewhere and
  wherever these cannot serve; why they cannot is logged, once.

  Args:
    name: one of `NAMES`, or what it shall return.
    head_dim: K.
    dtype: of queries.
    packed: whether rows may hold several samples.
    ring: whether it must work on a part of the keys at a time.

  Raises:
    ValueError: if the one that was asked for by name cannot serve.
  """
  if not isinstance(name, str):
    return name
  check_name(name)
  platform, kind = _device()
  refusals = {
    "splash": splash.refuses(platform, head_dim),
    "cudnn": library.refuses_cudnn(platform, head_dim, dtype, packed),
    "dense": "",
    "chunked": "",
  }
  if ring:
    for whole in ("cudnn", "dense"):
      refusals[whole] = refusals[whole] or f"{whole} cannot serve a ring"
  if name != "auto":
    # A program for a TPU may be lowered where there is none.
    if refusals[name] and name != "splash":
      raise ValueError(
        f"attention_kernel {name!r}: {refusals[name]}; use 'auto', or another "
        f"of {NAMES}"
      )
  else:
    wanted = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform)
    if wanted and refusals[wanted]:
      _log_once(f"attention in chunks: {refusals[wanted]}")
    name = wanted if wanted and not refusals[wanted] else "chunked"
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


def _device() -> tuple[str, str]:
  """Platform and kind of the devices that a program is made for.

  The mesh tells: a program for TPUs may be compiled on a machine without.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend(), jax.devices()[0].device_kind
  return device.platform, device.device_kind


@functools.lru_cache
def _log_once(message: str) -> None:
  log.warning(message)
