"""Prompts of a class-conditional network: the number of a class, as text.

Nothing is encoded, since the backbone has a table of classes. The number
travels as a text of one word with one code, so that data, packing and sampling
are the same as with words.

B rows, S words a row, N samples a row.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lumina_jax.tokens import Condition

CODE_WIDTH = 1  # K: a class is one integer


def tokenize(num_labels: int, prompt: str) -> np.ndarray:
  """Spells a class: `i32[1, 1]`; "" is the null class, `num_labels`.

  Raises:
    ValueError: if the prompt is not the number of a class.
  """
  text = prompt.strip()
  known = text.isdecimal() and int(text) < num_labels
  if text and not known:
    raise ValueError(
      f"prompt {prompt!r}: the classes of this network are 0 to "
      f'{num_labels - 1}; write the number of one, or "" for none'
    )
  return np.full((1, CODE_WIDTH), text or num_labels, np.int32)


def to_labels(condition: Condition) -> Condition:
  """Replaces codes `i32[B, S, 1]` by the samples' labels `i32[B, N]`."""
  numbers = jnp.arange(1, condition.sample_ids.shape[1] + 1)
  of_sample = condition.text_segments[..., None] == numbers
  label = jnp.sum(of_sample * condition.text, axis=1)
  return condition._replace(label=label, text=None, text_segments=None)
