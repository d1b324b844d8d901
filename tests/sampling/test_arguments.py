"""Values of callers: numbers, lists, seeds, arrays of any library."""

import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.sampling import arguments

EMBEDS = np.zeros((2, 3, 4), np.float32)


class TorchGenerator:
  def initial_seed(self):
    return 7


class TorchTensor:
  """What arrays of torch offer; numpy cannot read their bfloat16."""

  def __init__(self, values):
    self.values = values

  def detach(self):
    return self

  float = cpu = detach

  def numpy(self):
    return self.values


def test_one_value_serves_every_prompt():
  for value in (3, "a", None, np.float32(2), jnp.int32(5)):
    assert arguments.per_prompt(value, 2, "name") == [value] * 2
  for values in ([1, 2], (1, 2), np.array([1, 2])):
    assert list(arguments.per_prompt(values, 2, "name")) == [1, 2]
  assert arguments.prompts("7") == ["7"] == arguments.prompts(("7",))


def test_seeds_and_generators():
  generator = np.random.default_rng(3)
  expected = int(np.random.default_rng(3).integers(2**32))
  for value, seed in (
    (7, 7),
    (np.int64(7), 7),
    (TorchGenerator(), 7),
    ([TorchGenerator()], 7),
    (generator, expected),
  ):
    assert arguments.seeds(None, value, 1) == [(seed, 0)]
  assert arguments.seeds(None, None, 1) == [(0, 0)]
  assert arguments.seeds(4, None, 1, each=2) == [(4, 0), (4, 1)]
  assert arguments.seeds([4, 5], None, 2) == [(4, 0), (5, 0)]
  # Generators one for each sample, as in diffusers.
  found = arguments.seeds(None, [1, 2, 3, 4], 2, each=2)
  assert found == [(1, 0), (2, 0), (3, 0), (4, 0)]


def test_arrays_of_any_library_and_lists_of_different_sizes():
  rows = [np.ones((8, 16, 1), np.float32), np.zeros((8, 8, 1), np.float32)]
  shapes = [row.shape for row in rows]
  for convert in (np.asarray, jnp.asarray, TorchTensor, np.ndarray.tolist):
    found = arguments.latents([convert(row) for row in rows], shapes)
    for one, row in zip(found, rows, strict=True):
      np.testing.assert_array_equal(one, row)
  assert arguments.latents(None, shapes) == [None, None]


def test_masked_embeddings_are_dropped():
  mask = [[1, 0, 1], [True, True, False]]
  kept = arguments.embeddings(EMBEDS, mask, 4, "prompt_embeds")
  assert [len(row) for row in kept] == [2, 2]
  whole = arguments.embeddings(list(EMBEDS), None, 4, "prompt_embeds")
  assert [len(row) for row in whole] == [3, 3]


@pytest.mark.parametrize(
  ("function", "values", "message"),
  [
    (arguments.prompts, (None,), "prompt = None: must be a string or a list"),
    (arguments.prompts, ([3],), r"prompt = \[3\]"),
    (arguments.prompts, ([],), 'prompt is empty; "" is an unconditional'),
    (arguments.prompts, (["a", "\ud800"],), "is not Unicode"),
    (arguments.prompts, ([None], "negative_prompt"), "negative_prompt = .None"),
    (arguments.per_prompt, ([1], 2, "seed"), "seed has 1 values for 2 prompts"),
    (arguments.seeds, (1, 2, 1), "seed = 1 and a generator: pass one"),
    (arguments.seeds, (None, "x", 1), "generator = 'x': must be an int or"),
    (arguments.seeds, ("abc", None, 1), "seed = 'abc'"),
    (arguments.seeds, ([None], None, 1), "seed = None"),
    (arguments.seeds, (2**32, None, 1), "seed = 4294967296: must be from 0"),
    (arguments.seeds, (-1, None, 1), "seed = -1"),
    (arguments.seeds, (True, None, 1), "seed = True: must be a whole number"),
    (
      arguments.seeds,
      ([[1], [1, 2]], None, 2),
      r"seed = \[1\]: must be a whole",
    ),
    (arguments.seeds, (None, [1, 2], 1), "generator has 2 values for 1 prompt"),
    (arguments.seeds, (None, [], 1), "generator has 0 values for 1 prompts"),
    (arguments.seeds, (None, -1, 1), "generator = -1: must be from 0"),
    (arguments.seeds, (None, True, 1), "generator = True: must be a whole"),
    (arguments.latents, (3, [(4,)]), "latents = 3: must be an array or a list"),
    (
      arguments.latents,
      ([["a"]], [(1,)]),
      "latents is not an array of numbers",
    ),
    (
      arguments.latents,
      ([[np.nan]], [(1,)]),
      "latents has values that are not",
    ),
    (arguments.latents, ([[1j]], [(1,)]), "not an array of numbers .*complex"),
    (arguments.latents, (EMBEDS, [(3, 4)]), "latents has 2 rows for 1 samples"),
    (
      arguments.latents,
      (EMBEDS[:1], [(5, 4)]),
      r"latents\[0\] has shape \(3, 4\), its sample \(5, 4\)$",
    ),
    (
      arguments.latents,
      (np.zeros((1, 4, 8, 6)), [(8, 6, 4)]),
      r"latents\[0\] .*; move the channels to the last axis",
    ),
    (
      arguments.embeddings,
      (EMBEDS, None, 5, "prompt_embeds"),
      r"prompt_embeds\[0\] has shape \(3, 4\); this network takes f32\[S, 5\]",
    ),
    (arguments.embeddings, (3, None, 4, "prompt_embeds"), "prompt_embeds = 3"),
    (
      arguments.embeddings,
      (EMBEDS, [[1, 1, 1]], 4, "prompt_embeds"),
      "prompt_embeds has 2 rows, its mask 1",
    ),
    (
      arguments.embeddings,
      (EMBEDS, 1, 4, "prompt_embeds"),
      "the mask of prompt_embeds = 1: must be an array or a list",
    ),
    (
      arguments.embeddings,
      (EMBEDS + np.inf, None, 4, "prompt_embeds"),
      "prompt_embeds has values that are not finite",
    ),
    (
      arguments.embeddings,
      (EMBEDS, np.ones((2, 2)), 4, "prompt_embeds"),
      r"mask of prompt_embeds\[0\] has shape \(2,\); expected \(3,\)",
    ),
  ],
)
def test_values_that_do_not_fit_are_named(function, values, message):
  with pytest.raises(ValueError, match=message):
    function(*values)
