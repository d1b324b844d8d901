"""Callbacks of a call: tensors that they receive, and may change."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lumina_jax.model.network import Network
from lumina_jax.sampling import arguments
from lumina_jax.sampling.call import Call

LATENTS = "latents"
# Tensors of text that a callback may see and change, by their inputs.
TEXTS = {"prompt_embeds": "condition", "negative_prompt_embeds": "negative"}

BySample = dict[int, np.ndarray]


class Step(NamedTuple):
  """A step that has ended.

  Attributes:
    number: from 0.
    times: of each sample, by its number.
    tensors: latents `f32[*shape, C]`, and features `f32[S, E]` where a frozen
      language model encodes prompts, of each sample by name and number.
  """

  number: int
  times: Mapping[int, float]
  tensors: Mapping[str, BySample]


# A step -> changed tensors by name; {} = none.
OnStep = Callable[[Step], Mapping[str, BySample]]


def on_step(pipeline: Any, network: Network, call: Call) -> OnStep | None:
  """Both kinds of callbacks as one function.

  Args:
    pipeline: that `callback_on_step_end` receives.
    network: whose prompts may be encoded by a language model.
    call: the callbacks, and the tensors that they receive.

  Raises:
    ValueError: if both are given, or a name is unknown.
  """
  tensor_inputs = call.callback_on_step_end_tensor_inputs
  several = arguments.is_list(tensor_inputs)
  names = tensor_inputs if several else [tensor_inputs]
  known = [LATENTS, *(TEXTS if network.frozen_text else ())]
  if unknown := [name for name in names if name not in known]:
    raise ValueError(
      f"callback_on_step_end_tensor_inputs {unknown}: use {', '.join(known)}"
    )
  if call.callback is not None and call.callback_on_step_end is not None:
    raise ValueError("callback and callback_on_step_end: pass one of them")
  if call.callback is None and call.callback_on_step_end is None:
    return None

  def changes(step: Step) -> Mapping[str, Any]:
    time = next(iter(step.times.values()))
    lists = {k: list(v.values()) for k, v in step.tensors.items()}
    if call.callback is not None:
      return {LATENTS: call.callback(step.number, time, lists[LATENTS])}
    shown = {name: lists[name] for name in names if name in lists}
    changed = call.callback_on_step_end(pipeline, step.number, time, shown)
    if not isinstance(changed, Mapping | None):
      raise ValueError(
        f"callback_on_step_end returned a {type(changed).__name__}; it may "
        "return a dict of changed tensors, or None"
      )
    return changed or {}

  def run(step: Step) -> Mapping[str, BySample]:
    changed = {}
    for name, value in changes(step).items():
      if value is None:
        continue
      if name not in step.tensors:
        raise ValueError(
          f"the callback returned {name!r}; it may change "
          f"{', '.join(step.tensors)}"
        )
      changed[name] = _checked(name, value, step.tensors[name])
    return changed

  return run


def _checked(name: str, value: Any, old: BySample) -> BySample:
  """A returned list, checked against the tensors that it replaces."""
  try:
    if name == LATENTS:
      rows = arguments.latents(value, [x.shape for x in old.values()])
    else:
      width = next(iter(old.values())).shape[1]
      rows = arguments.embeddings(value, None, width, name)
      if len(rows) != len(old):
        raise ValueError(f"{name} has {len(rows)} rows for {len(old)} samples")
  except ValueError as error:
    raise ValueError(f"the callback returned {error}") from error
  return dict(zip(old, rows, strict=True))
