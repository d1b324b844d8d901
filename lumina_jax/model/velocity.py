"""predict_velocity: the network alone, for whoever wants no more than that.

cfg, params = lumina_jax.interop.load_pytorch("Lumina-Next-SFT")
v = lumina_jax.predict_velocity(cfg, params, latents, 0.5, text=features)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lumina_jax import packing
from lumina_jax.backbone import DiT, ModelConfig
from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.tokens import Condition, Grid, Tokens

Latents = Any  # One array f32[B, *shape, C], or a list of f32[*shape, C].


def predict_velocity(
  cfg: ModelConfig,
  params: Any,
  latents: Latents,
  time: Any,
  *,
  text: Any = None,
  text_mask: Any = None,
  label: Any = None,
  rope: RopeScaling | None = None,
  proportional_attention_base: float | None = None,
) -> Latents:
  """The velocity x_1 - x_0 that the network predicts at x_t.

  Samples are packed into rows as long as the longest of them, so those of one
  size mostly have a row each. Lengths are rounded up a ladder of eight
  steps an octave, so that many sizes share few compiled programs; padding and
  packing change nothing. Can be traced: jit and grad work through it.

  Args:
    cfg: the network.
    params: of the backbone, as `interop.load_pytorch` returns them.
    latents: `f32[B, H, W, C]` (audio `[B, T, C]`), or a list of B such arrays
      without B, of any sizes. Channels come last.
    time: from 0 (noise) to 1 (data), one number or `f32[B]`. (The network may
      count otherwise; `cfg.time_scale` sees to that.)
    text: features `f32[B, S, E]` of a text-conditional network, or a list of B
      arrays `f32[S_i, E]`.
    text_mask: `[B, S]`, which of them count; None = all. The published audio
      network was trained with all of them, padding included.
    label: `i32[B]` of a class-conditional network; `cfg.num_labels` is the
      null class.
    rope: how to stretch positions beyond the trained size, each of its numbers
      one for all or `f32[B]`; None = as `cfg` says.
    proportional_attention_base: tokens of the trained size; scores of
      self-attention are then multiplied by sqrt(log_base(tokens)), with the
      sample's own number of tokens, separators included (Lumina-Next, 2.1).

  Returns:
    What `latents` is: an array or a list of them, of numpy or on the device.

  Raises:
    ValueError: naming an argument whose shape or value does not fit.
  """
  is_list = isinstance(latents, (list, tuple))
  latents = [_array(x) for x in latents] if is_list else _array(latents)
  _check_latents(cfg, latents, is_list)
  grids = [cfg.grid(*x.shape[:-1]) for x in latents]
  count = len(grids)
  condition = Condition(
    time=_each(time, count, "time", np.float32),
    label=_labels(cfg, label, count),
    **_text(cfg, text, text_mask, count),
  )
  _check_time(condition.time)
  if proportional_attention_base is not None:
    condition = condition._replace(
      attention_scale=_attention_scale(grids, proportional_attention_base)
    )
  if rope is not None:
    condition = condition._replace(rope_rates=_rates(cfg, rope, condition.time))
  rows = packing.first_fit(
    [(grid.num_tokens,) for grid in grids], (_ladder(grids),)
  )
  tokens = _tokens(cfg, rows, grids, latents)
  velocity = _apply(cfg, params, tokens, _rows(rows, condition))
  if isinstance(latents[0], np.ndarray) and not isinstance(velocity, Tracer):
    velocity = np.asarray(velocity)  # Cut on the host, where nothing compiles.
  pieces = _cut(rows, grids, velocity)
  return pieces if is_list else velocity.__array_namespace__().stack(pieces)


@functools.partial(jax.jit, static_argnums=0)
def _apply(cfg, params, tokens, condition):
  return DiT(cfg).apply({"params": params}, tokens, condition)


def _array(x: Any) -> Any:
  """Arrays as they are; lists and tensors of PyTorch as numpy's."""
  return x if isinstance(x, jax.Array) else np.asarray(x)


def _check_latents(cfg: ModelConfig, latents: Latents, is_list: bool) -> None:
  if not len(latents):
    raise ValueError("latents: there are none")
  axes = ("T", "H, W", "F, H, W")[len(cfg.patch) - 1]
  for number, x in enumerate(latents):
    if x.ndim != len(cfg.patch) + 1 or x.shape[-1] != cfg.channels:
      expected = f"({axes}, {cfg.channels}), channels last"
      raise ValueError(
        f"latents[{number}] has shape {x.shape}; expected {expected}"
        if is_list
        else f"latents has shape {latents.shape}; expected B x {expected}"
      )


def _check_time(time: Any) -> None:
  if isinstance(time, Tracer):
    return
  # Float32 may step over 1 by a hair.
  wrong = [t for t in np.asarray(time).tolist() if not 0 <= t <= 1 + 1e-6]
  if wrong:
    raise ValueError(
      f"time = {wrong[0]}: from 0 (noise) to 1 (data); whole steps are to be "
      "divided by their number (1000), see ModelConfig.time_scale"
    )


def _each(value: Any, count: int, name: str, dtype: Any) -> Any:
  """One value for all samples, or one for each: `[B]`."""
  if not isinstance(value, jax.Array):
    value = np.asarray(value, dtype)
  if value.shape not in ((), (count,)):
    raise ValueError(
      f"{name} has shape {value.shape}; expected one number, or {count}"
    )
  return jnp.broadcast_to(value.astype(dtype), (count,))


def _rates(cfg: ModelConfig, rope: RopeScaling, time: Any) -> jax.Array:
  """`f32[B, K/2]` at times `f32[B]`."""
  if not isinstance(rope, RopeScaling):
    raise ValueError(f"rope = {rope!r}: expected a RopeScaling")

  def each(path, value):
    name = f"rope{jax.tree_util.keystr(path)}"
    return _each(value, len(time), name, np.float32)

  def is_list(value):
    return isinstance(value, (list, tuple))

  rope = jax.tree.map_with_path(each, rope, is_leaf=is_list)
  return rope.rates(time, cfg.head_dim, cfg.position_axes, cfg.rope_theta)


def _labels(cfg: ModelConfig, label: Any, count: int) -> Any:
  if (label is None) != (not cfg.num_labels):
    raise ValueError(
      f"label is needed: a class from 0 to {cfg.num_labels - 1}, or "
      f"{cfg.num_labels} for none"
      if label is None
      else "label: this network knows no classes"
    )
  if label is None:
    return None
  if not isinstance(label, jax.Array):
    label = np.asarray(label)
  if not np.issubdtype(label.dtype, np.integer):
    raise ValueError(f"label is of type {label.dtype}; classes are integers")
  label = _each(label, count, "label", np.int32)
  if not isinstance(label, Tracer):
    wrong = [
      c for c in np.asarray(label).tolist() if not 0 <= c <= cfg.num_labels
    ]
    if wrong:
      raise ValueError(
        f"label = {wrong[0]}: from 0 to {cfg.num_labels}, the last is the null "
        "class"
      )
  return label


def _text(cfg: ModelConfig, text: Any, mask: Any, count: int) -> dict[str, Any]:
  if (text is None) != (not cfg.text_width):
    raise ValueError(
      f"text is needed: features f32[B, S, {cfg.text_width}]"
      if text is None
      else "text: this network takes none"
    )
  if text is None:
    if mask is not None:
      raise ValueError("text_mask: there is no text to mask")
    return {}
  if isinstance(text, (list, tuple)) and mask is None:
    text, mask = _side_by_side([_array(x) for x in text], cfg.text_width)
  text, width = _array(text), cfg.text_width
  mask = np.ones(text.shape[:2], np.int32) if mask is None else _array(mask)
  if text.ndim != 3 or (text.shape[0], text.shape[2]) != (count, width):
    raise ValueError(
      f"text has shape {text.shape}; expected ({count}, S, {width})"
    )
  if mask.shape != text.shape[:2]:
    raise ValueError(
      f"text_mask has shape {mask.shape}; expected {text.shape[:2]}"
    )
  text, segments = _first(text, (mask != 0).astype(np.int32))
  return {"text": text, "text_segments": segments}


def _first(text: Any, segments: Any) -> tuple[Any, Any]:
  """Features that count before those that do not, in their order.

  It changes no sum over them, and kernels that know lengths only need it.
  """
  order = segments.__array_namespace__().argsort(-segments, axis=1, stable=True)
  xp = text.__array_namespace__()
  return (
    xp.take_along_axis(text, order[..., None], axis=1),
    segments.__array_namespace__().take_along_axis(segments, order, axis=1),
  )


def _side_by_side(texts: Sequence[Any], width: int) -> tuple[Any, np.ndarray]:
  """Features `f32[S_i, E]` of unlike lengths as one array and its mask."""
  if not texts:
    raise ValueError("text: there is none")
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


def _attention_scale(grids: Sequence[Grid], base: float) -> np.ndarray:
  if not base > 1:
    raise ValueError(f"proportional_attention_base = {base}: more than 1 token")
  logs = [math.log(max(grid.num_tokens, 1), base) for grid in grids]
  return np.sqrt(np.asarray(logs, np.float32))


def _ladder(grids: Sequence[Grid]) -> int:
  """Tokens of a row: the longest sample, rounded up."""
  return packing.ladder(max(grid.num_tokens for grid in grids))


def _tokens(cfg, rows, grids, latents) -> Tokens:
  """Layout on the host, values wherever the latents are."""
  xp = latents[0].__array_namespace__()
  length, dim = _ladder(grids), cfg.patch_dim
  layouts, values = [], []
  for row in rows:
    mine = [grids[i] for i in row]
    blank = [np.zeros((g.num_tokens, dim), np.float32) for g in mine]
    layouts.append(packing.pack(mine, blank, length, dim, cfg.position_axes))
    patches = [grids[i].tokenize(latents[i]) for i in row]
    patches = xp.concatenate(patches).astype(np.float32)
    values.append(xp.pad(patches, ((0, length - len(patches)), (0, 0))))
  return packing.stack(layouts)._replace(patches=xp.stack(values))


def _rows(rows: list[list[int]], condition: Condition) -> Condition:
  """Deals samples `[B, ...]` to rows `[R, N, ...]`, their text side by side."""
  slots = max(map(len, rows))
  place = np.zeros((len(rows), slots), int)
  exists = np.zeros_like(place)
  for r, row in enumerate(rows):
    place[r, : len(row)], exists[r, : len(row)] = row, 1

  def deal(x):
    return None if x is None else x[place]

  text, segments = deal(condition.text), deal(condition.text_segments)
  if text is not None:
    segments = segments * (exists * np.arange(1, slots + 1))[..., None]
    text = text.reshape(len(rows), -1, text.shape[-1])
    segments = segments.reshape(len(rows), -1)
  return Condition(
    time=deal(condition.time),
    label=deal(condition.label),
    text=text,
    text_segments=segments,
    rope_rates=deal(condition.rope_rates),
    attention_scale=deal(condition.attention_scale),
  )


def _cut(rows, grids, velocity) -> list[Any]:
  """Rows `f32[R, L, P]` -> velocities `f32[*shape, C]` in the order given."""
  pieces = {}
  for row, values in zip(rows, velocity, strict=True):
    start = 0
    for i in row:
      stop = start + grids[i].num_tokens
      pieces[i] = grids[i].detokenize(values[start:stop])
      start = stop
  return [pieces[i] for i in range(len(grids))]
