"""Selects the attention kernel, by name or for the platform."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp

from lumina_jax.attention import dot_product, splash
from lumina_jax.attention.chunked import CPU_SCORES, SCORES, Chunked
from lumina_jax.files import suggest

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
  """Returns a `Kernel`, or a function that attends to all keys.

  "auto" is splash on TPUs, cuDNN on GPUs and the chunked kernel elsewhere. A
  kernel that does not support the arguments falls back to that of the platform,
  then to the chunked one; the reason is logged once.

  Args:
    name: one of `NAMES`, or a kernel, which is returned.
    head_dim: K.
    dtype: type of the queries.
    packed: whether a row may hold several samples.
    ring: whether the kernel must attend to a part of the keys at a time.
    strict: raises instead of falling back.

  Raises:
    ValueError: if the name is unknown, or strict and unsupported.
  """
  if not isinstance(name, str):
    return name
  check_name(name)
  platform, kind = device()
  problems = {
    "splash": splash.unsupported(platform, head_dim),
    "cudnn": dot_product.cudnn_unsupported(platform, head_dim, dtype, packed),
    "dense": "",
    "chunked": "",
  }
  if ring:
    for other in ("cudnn", "dense"):
      problems[other] = problems[other] or f"{other} cannot serve a ring"
  default = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(
    platform, "chunked"
  )
  for candidate in (default if name == "auto" else name, default):
    if not problems[candidate]:
      name = candidate
      break
    if strict and name != "auto":
      raise ValueError(
        f"attention_kernel {name!r}: {problems[name]}; use 'auto'"
      )
    _log_once(f"attention without {candidate}: {problems[candidate]}")
  else:
    name = "chunked"
  if name == "splash":
    return splash.Splash(*splash.blocks(kind, head_dim))
  if name == "chunked":
    return Chunked(CPU_SCORES if platform == "cpu" else SCORES)
  return {"cudnn": dot_product.cudnn, "dense": dot_product.dense}[name]


def check_name(name: str) -> None:
  """Checks `ModelConfig.attention_kernel`.

  Raises:
    ValueError: if there is no such kernel.
  """
  suggest.check_name("attention_kernel", name, NAMES)


def device() -> tuple[str, str]:
  """Platform and kind of the devices that the program is compiled for.

  The mesh decides, since a machine without TPUs can compile for TPUs.
  """
  target = jax.sharding.get_abstract_mesh().abstract_device
  if target is None:
    return jax.default_backend(), jax.devices()[0].device_kind
  return target.platform, target.device_kind


@functools.lru_cache
def _log_once(message: str) -> None:
  log.warning(message)
