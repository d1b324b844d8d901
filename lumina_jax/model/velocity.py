"""The backbone as a function of latents.

cfg, params = lumina_jax.interop.load_pytorch("Lumina-Next-SFT")
v = lumina_jax.predict_velocity(cfg, params, latents, 0.5, text=features)
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from lumina_jax import packing
from lumina_jax.backbone import DiT, ModelConfig
from lumina_jax.backbone.rope import RopeScaling
from lumina_jax.model import conditioning
from lumina_jax.model.conditioning import Latents
from lumina_jax.tokens import Condition, Tokens


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

  Packs samples into rows as long as the longest sample, so samples of one size
  mostly have a row each. Rounds lengths up to a ladder of eight steps an
  octave, so that many sizes share few compiled programs; padding and packing
  change nothing. jit and grad work through it.

  Args:
    cfg: config of the backbone.
    params: parameters of the backbone, as `interop.load_pytorch` returns them.
    latents: `f32[B, H, W, C]` (audio `[B, T, C]`), or a list of B such arrays
      without B, of any sizes. Channels come last.
    time: from 0 (noise) to 1 (data), one number or `f32[B]`; `cfg.time_scale`
      converts it to the scale of training.
    text: features `f32[B, S, E]` of a text-conditional network, or a list of B
      arrays `f32[S_i, E]`.
    text_mask: `[B, S]`, nonzero for features that count; None = all. The
      published audio network was trained with all of them, padding included.
    label: `i32[B]` of a class-conditional network; `cfg.num_labels` is the
      null class.
    rope: stretches positions beyond the trained size, each of its numbers one
      for all or `f32[B]`; None = as `cfg` says.
    proportional_attention_base: tokens of the trained size; multiplies scores
      of self-attention by sqrt(log_base(tokens)), with the sample's own number
      of tokens, separators included (Lumina-Next, 2.1).

  Returns:
    The velocity, an array or a list of arrays like `latents`, of numpy or on
    the device.

  Raises:
    ValueError: naming an argument whose shape or value does not fit.
  """
  if isinstance(params, Mapping) and "backbone" in params:
    raise ValueError("params of a whole network: pass params['backbone']")
  is_list = isinstance(latents, (list, tuple))
  latents = (
    [conditioning.as_array(x, f"latents[{n}]") for n, x in enumerate(latents)]
    if is_list
    else conditioning.as_array(latents, "latents")
  )
  conditioning.check_latents(cfg, latents, is_list)
  grids = [cfg.grid(*x.shape[:-1]) for x in latents]
  count = len(grids)
  time = conditioning.times(time, count)
  condition = Condition(
    time=time,
    label=conditioning.labels(cfg, label, count),
    rope_rates=conditioning.rope_rates(cfg, rope, time),
    attention_scale=conditioning.attention_scale(
      grids, proportional_attention_base
    ),
    **conditioning.text_features(cfg, text, text_mask, count),
  )
  length = packing.ladder(max(grid.num_tokens for grid in grids))
  rows = packing.first_fit([(grid.num_tokens,) for grid in grids], (length,))
  tokens = _tokens(cfg, rows, grids, latents, length)
  velocity = _apply(cfg, params, tokens, _rows(rows, condition))
  if isinstance(latents[0], np.ndarray) and not isinstance(velocity, Tracer):
    velocity = np.asarray(velocity)  # Slicing on the host compiles nothing.
  pieces = _cut(rows, grids, velocity)
  return pieces if is_list else velocity.__array_namespace__().stack(pieces)


@dataclasses.dataclass(frozen=True)
class Transformer:
  """A backbone that can be called.

  Attributes:
    config: of the backbone.
    params: parameters of the backbone.
  """

  config: ModelConfig
  params: Any = dataclasses.field(repr=False)

  def __call__(self, latents: Latents, time: Any, **options: Any) -> Latents:
    """The velocity at x_t; the arguments are those of `predict_velocity`."""
    return predict_velocity(self.config, self.params, latents, time, **options)


@functools.partial(jax.jit, static_argnums=0)
def _apply(cfg, params, tokens, condition):
  return DiT(cfg).apply({"params": params}, tokens, condition)


def _tokens(cfg, rows, grids, latents, length) -> Tokens:
  """Lays tokens out on the host; values stay where the latents are."""
  xp, dim = latents[0].__array_namespace__(), cfg.patch_dim
  layouts, values = [], []
  for row in rows:
    row_grids = [grids[i] for i in row]
    blank = [np.zeros((g.num_tokens, dim), np.float32) for g in row_grids]
    layouts.append(
      packing.pack(row_grids, blank, length, dim, cfg.position_axes)
    )
    patches = [grids[i].tokenize(latents[i]) for i in row]
    patches = xp.concatenate(patches).astype(np.float32)
    values.append(xp.pad(patches, ((0, length - len(patches)), (0, 0))))
  return packing.stack(layouts)._replace(patches=xp.stack(values))


def _rows(rows: list[list[int]], condition: Condition) -> Condition:
  """Distributes samples `[B, ...]` to rows `[R, N, ...]`."""
  slots = max(map(len, rows))
  place = np.zeros((len(rows), slots), int)
  exists = np.zeros_like(place)
  for r, row in enumerate(rows):
    place[r, : len(row)], exists[r, : len(row)] = row, 1

  condition = jax.tree.map(lambda x: x[place], condition)
  if condition.text is None:
    return condition
  text, segments = condition.text, condition.text_segments
  segments = segments * (exists * np.arange(1, slots + 1))[..., None]
  return condition._replace(
    text=text.reshape(len(rows), -1, text.shape[-1]),
    text_segments=segments.reshape(len(rows), -1),
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
