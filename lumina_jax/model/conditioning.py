"""Checks arguments of `predict_velocity`, and builds conditions."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lumina_jax.backbone import ModelConfig
from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.files import numbers
from lumina_jax.tokens import Grid

Latents = Any  # One array f32[B, *shape, C], or a list of f32[*shape, C].


def as_array(x: Any, name: str) -> Any:
  """A JAX array unchanged; lists and PyTorch tensors as numpy arrays.

  Raises:
    ValueError: if it holds anything but real numbers.
  """
  kinds = np.floating, np.integer, np.bool_
  try:
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
      raise TypeError(f"dtype {x.dtype}")
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name} is no array of real numbers ({error})") from error
  return x


def check_latents(cfg: ModelConfig, latents: Latents, is_list: bool) -> None:
  """Raises ValueError for latents that the network cannot read."""
  axes = ", ".join(f"axis {n}" for n in range(len(cfg.patch)))
  expected = f"({axes}, {cfg.channels}), channels last"
  axis, last = len(cfg.patch), (cfg.channels,)  # x.shape[axis:] of a sample
  if not is_list and latents.shape[axis + 1 :] != last:
    raise ValueError(
      f"latents has shape {latents.shape}; expected B x {expected}"
    )
  if not len(latents):
    raise ValueError("latents is empty")
  for number, x in enumerate(latents):
    if x.shape[axis:] != last:
      raise ValueError(
        f"latents[{number}] has shape {x.shape}; expected {expected}"
      )


def times(time: Any, count: int) -> Any:
  """One time for all samples, or one for each, as `f32[B]`.

  Raises:
    ValueError: for times outside [0, 1]; traced times pass.
  """
  time = per_sample(time, count, "time", np.float32)
  if isinstance(time, Tracer):
    return time
  # Float32 rounding may exceed 1.
  wrong = [t for t in np.asarray(time).tolist() if not 0 <= t <= 1 + 1e-6]
  if wrong:
    raise ValueError(
      f"time = {wrong[0]}: must be from 0 (noise) to 1 (data); divide whole "
      "steps by their number (1000), see ModelConfig.time_scale"
    )
  return time


def per_sample(value: Any, count: int, name: str, dtype: Any) -> Any:
  """Broadcasts one value for all samples, or one for each, to `[B]`."""
  value = as_array(value, name)
  if value.shape not in ((), (count,)):
    raise ValueError(
      f"{name} has shape {value.shape}; expected one number, or {count}"
    )
  return jnp.broadcast_to(value.astype(dtype), (count,))


def rope_rates(
  cfg: ModelConfig, rope: RopeScaling | None, time: Any
) -> jax.Array | None:
  """RoPE rates `f32[B, K/2]` at times `f32[B]`; None without a rule."""
  if rope is None:
    return None
  if not isinstance(rope, RopeScaling):
    raise ValueError(f"rope = {rope!r}: expected a RopeScaling")

  def each(path, value):
    name = f"rope{jax.tree_util.keystr(path)}"
    return per_sample(value, len(time), name, np.float32)

  def is_list(value):
    return isinstance(value, (list, tuple))

  rope = jax.tree.map_with_path(each, rope, is_leaf=is_list)
  return rope.rates(time, cfg.head_dim, cfg.position_axes, cfg.rope_theta)


def labels(cfg: ModelConfig, label: Any, count: int) -> Any:
  """Class labels `i32[B]`, or None for a network without classes."""
  if (label is None) != (not cfg.num_labels):
    raise ValueError(
      f"label is missing: pass a class from 0 to {cfg.num_labels - 1}, or "
      f"{cfg.num_labels} for the null class"
      if label is None
      else "label: this network has no classes"
    )
  if label is None:
    return None
  label = as_array(label, "label")
  if not np.issubdtype(label.dtype, np.integer):
    raise ValueError(f"label has type {label.dtype}; pass integers")
  label = per_sample(label, count, "label", np.int32)
  if not isinstance(label, Tracer):
    wrong = [
      c for c in np.asarray(label).tolist() if not 0 <= c <= cfg.num_labels
    ]
    if wrong:
      raise ValueError(
        f"label = {wrong[0]}: must be from 0 to {cfg.num_labels}, where "
        f"{cfg.num_labels} is the null class"
      )
  return label


def text_features(
  cfg: ModelConfig, text: Any, mask: Any, count: int
) -> dict[str, Any]:
  """Fields `text` and `text_segments` of a condition, one sample a row."""
  if (text is None) != (not cfg.text_width):
    raise ValueError(
      f"text is missing: pass features f32[B, S, {cfg.text_width}]"
      if text is None
      else "text: this network takes no text"
    )
  if text is None:
    if mask is not None:
      raise ValueError("text_mask without text")
    return {}
  if isinstance(text, (list, tuple)) and mask is None:
    texts = [as_array(x, f"text[{n}]") for n, x in enumerate(text)]
    text, mask = _pad_texts(texts, cfg.text_width)
  text, width = as_array(text, "text"), cfg.text_width
  mask = np.ones(text.shape[:2], np.int32) if mask is None else mask
  mask = as_array(mask, "text_mask")
  shape = count, *text.shape[1:2], width
  if text.shape != shape or not text.size:
    raise ValueError(
      f"text has shape {text.shape}; expected ({count}, S, {width})"
    )
  if mask.shape != text.shape[:2]:
    raise ValueError(
      f"text_mask has shape {mask.shape}; expected {text.shape[:2]}"
    )
  text, segments = _valid_first(text, (mask != 0).astype(np.int32))
  return {"text": text, "text_segments": segments}


def _valid_first(text: Any, segments: Any) -> tuple[Any, Any]:
  """Moves features that count before the others, in order.

  This changes no sum over them; kernels that only know lengths require it.
  """
  order = segments.__array_namespace__().argsort(-segments, axis=1, stable=True)
  xp = text.__array_namespace__()
  return (
    xp.take_along_axis(text, order[..., None], axis=1),
    segments.__array_namespace__().take_along_axis(segments, order, axis=1),
  )


def _pad_texts(texts: Sequence[Any], width: int) -> tuple[Any, np.ndarray]:
  """Pads features `f32[S_i, E]` to one array, and returns its mask."""
  if not texts:
    raise ValueError("text is empty")
  for number, text in enumerate(texts):
    if text.ndim != 2 or text.shape[1] != width:
      raise ValueError(
        f"text[{number}] has shape {text.shape}; expected (S, {width})"
      )
  lengths = [len(text) for text in texts]
  xp = texts[0].__array_namespace__()
  padded = [xp.pad(x, ((0, max(lengths) - len(x)), (0, 0))) for x in texts]
  mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
  return xp.stack(padded), mask


def attention_scale(
  grids: Sequence[Grid], base: float | None
) -> np.ndarray | None:
  """sqrt(log_base(tokens)) of each sample, `f32[B]`; None without a base."""
  if base is None:
    return None
  base = numbers.number(base, "proportional_attention_base")
  if base <= 1:
    raise ValueError(
      f"proportional_attention_base = {base:g}: must be more than 1 token"
    )
  logs = [math.log(max(grid.num_tokens, 1), base) for grid in grids]
  return np.sqrt(np.asarray(logs, np.float32))
