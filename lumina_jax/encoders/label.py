"""Prompts of class-conditional networks: a class number as text.

The backbone has a table of classes, so no encoder runs. A class number is a
text of one word with one code: data, packing and sampling treat it like words.

B rows, S words a row, N samples a row.
"""

import jax.numpy as jnp
import numpy as np

from lumina_jax.tokens import Condition

CODE_WIDTH = 1  # K: one integer represents a class.


def tokenize(num_labels: int, prompt: str) -> np.ndarray:
  """Converts a class number to codes `i32[1, 1]`.

  The empty prompt is the null class, `num_labels`.

  Raises:
    ValueError: if the prompt is not the number of a class.
  """
  text = prompt.strip()
  known = text.isdecimal() and int(text) < num_labels
  if text and not known:
    raise ValueError(
      f"prompt {prompt!r}: the classes of this network are 0 to "
      f'{num_labels - 1}; write a class number, or "" for the null class'
    )
  return np.full((1, CODE_WIDTH), text or num_labels, np.int32)


def to_labels(condition: Condition) -> Condition:
  """Replaces codes `i32[B, S, 1]` by labels of samples, `i32[B, N]`."""
  numbers = jnp.arange(1, condition.sample_ids.shape[1] + 1)
  of_sample = condition.text_segments[..., None] == numbers
  label = jnp.sum(of_sample * condition.text, axis=1)
  return condition._replace(label=label, text=None, text_segments=None)
