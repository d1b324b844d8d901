"""The compiled sampler: what it computes once, and when it compiles anew."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from support import tiny_pipeline as tiny
from support.pipelines import distance, replaced

from lumina_jax.flow.objective import Objective
from lumina_jax.flow.path import VP
from lumina_jax.flow.solvers import SOLVERS, for_path, get_solver
from lumina_jax.model import network
from lumina_jax.sampling import program as programs
from lumina_jax.sampling import run

CALL = dict(num_inference_steps=4, output_type="latent", seed=3)


def captured(pipe, monkeypatch, *args, **call):
  """Arguments of the sampler in a call, which then ends."""

  class Captured(Exception):
    pass

  def capture(params, inputs, *, program):
    raise Captured(params, inputs, program)

  with monkeypatch.context() as patch:
    patch.setattr(run.programs, "sample", capture)
    with pytest.raises(Captured) as caught:
      pipe(*args, **CALL | call)
  return caught.value.args


def computations(hlo: str) -> dict[str, str]:
  """The computations of an HLO module by name."""
  found = re.findall(
    r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", hlo, re.M | re.S
  )
  return dict(found)


def within(name: str, bodies: dict[str, str]) -> set[str]:
  """A computation and all that it calls."""
  found, names = set(), [name]
  while names:
    name = names.pop()
    if name not in found:
      found.add(name)
      words = re.findall(r"[\w.-]+", bodies[name])
      names += [word for word in words if word in bodies]
  return found


def text_projections(params, inputs, program) -> tuple[int, int]:
  """Products with the kernels of text keys and values, in the loop or not.

  Only these contract features of a language model's width.
  """
  # A new function, so that no earlier trace is found.
  sample = jax.jit(
    lambda params, inputs: programs.sample.__wrapped__(
      params, inputs, program=program
    )
  )
  hlo = sample.lower(params, inputs).as_text(dialect="hlo")
  bodies = computations(hlo)
  (entry,) = re.findall(r"^ENTRY %?([\w.-]+)", hlo, re.M)
  loops = re.findall(r"while\(.*?body=%?([\w.-]+)", hlo)
  # The loop over steps holds that over layers; the other computes constants.
  steps = [b for b in loops if any(x in within(b, bodies) - {b} for x in loops)]
  assert steps and entry in bodies
  inside = set().union(*(within(body, bodies) for body in steps))

  def count(names):
    lines = [line for name in names for line in bodies[name].splitlines()]
    shapes = {
      name: shape
      for line in lines
      for name, shape in re.findall(r"%?([\w.-]+) = (\S+)", line)
    }
    dots = [re.search(r" dot\(([^)]*)\)", line) for line in lines]
    operands = [dot[1].split(", ") for dot in dots if dot]
    return sum(
      any(f"[{tiny.WIDTH}," in shapes[x.lstrip("%").split()[-1]] for x in pair)
      for pair in operands
    )

  return count(inside), count(bodies.keys() - inside)


def test_text_keys_and_values_are_computed_outside_the_steps(
  latents, monkeypatch
):
  *arguments, program = captured(latents, monkeypatch, tiny.PROMPT)
  inside, outside = text_projections(*arguments, program)
  assert inside == 0 and outside >= 2
  # Without the constants the same count finds them in the loop.
  monkeypatch.setattr(network, "text_cache", lambda *_: None)
  other = dataclasses.replace(program, groups=("traced anew",))
  inside, _ = text_projections(*arguments, other)
  assert inside >= 2


@dataclasses.dataclass(frozen=True)
class Group:
  ratio: float


def test_a_group_of_options_is_another_program(pixels, monkeypatch):
  _, inputs, program = captured(pixels, monkeypatch, "7")
  assert program.groups == ()
  one, same, other = (
    dataclasses.replace(program, groups=(Group(x),)) for x in (0.5, 0.5, 0.25)
  )
  assert hash(one) == hash(same) and one == same != other


def test_one_program_serves_each_budget_of_rows(pixels):
  call = CALL | dict(solver="euler", num_inference_steps=2)
  before = programs.sample._cache_size()
  pixels(["3 1 4", "7", "3 1 / 4 1"], **call)
  budget = programs.sample._cache_size()
  pixels("5", **call)
  pixels(["1 / 2"] * 7, **call | dict(seed=9), guidance_scale=3.5, shift=2.0)
  pixels("8", **call, height=24, width=8, negative_prompt="3")
  assert programs.sample._cache_size() == budget <= before + 1
  pixels("8", **call, height=8, width=160)
  assert programs.sample._cache_size() == budget + 1


def test_values_of_options_compile_nothing_anew(pixels):
  beyond = replaced(pixels, options=dict(rope_scaling="dype_yarn"))
  call = CALL | dict(guidance_interval=(0.1, 0.9), proportional_attention=True)
  beyond("3 1", **call, guidance_scale=3.0)
  before = programs.sample._cache_size()
  for changes in (
    dict(guidance_scale=5.0, seed=9),
    dict(guidance_interval=(0.0, 0.4), guidance_renorm=1.0),
    dict(shift=3.0, shift_tokens=16),
    dict(schedule="sigmoid"),
    dict(schedule=[0, 0.1, 0.2, 0.6, 1.0]),
    dict(sigmas=[1.0, 0.8, 0.5, 0.1], guidance_channels=1),
    dict(height=16, width=32, negative_prompt="7"),
  ):
    beyond("3 1", **call | dict(guidance_scale=2.0) | changes)
  assert programs.sample._cache_size() == before


def test_stepping_compiles_one_program(pixels):
  call = CALL | dict(num_inference_steps=3, callback=lambda *_: None)
  before = programs.advance._cache_size()
  pixels("7", **call)
  pixels("7", **call | dict(num_inference_steps=5))
  assert programs.advance._cache_size() <= before + 1


@pytest.mark.parametrize(
  "name", ["dpm2m", pytest.param("midpoint", marks=pytest.mark.long)]
)
def test_padding_and_empty_rows_stay_zero(pixels, name, monkeypatch):
  params, inputs, program = captured(pixels, monkeypatch, "3 1", solver=name)
  state = programs.sample(params, inputs, program=program)
  padding = np.asarray(inputs.tokens.segments) == 0
  assert padding.all(axis=1).any()  # Rows without any sample.
  np.testing.assert_array_equal(np.asarray(state.x)[padding], 0)
  assert state.solver_memory == state.velocity_memory == ()


def test_solvers_know_the_path_of_the_network(pixels, monkeypatch):
  noise = dataclasses.replace(
    pixels.network, objective=Objective("vp", "noise", "none")
  )
  other = replaced(pixels, network=noise)
  for name in ("dpm2m", "sde_heun"):
    *_, program = captured(other, monkeypatch, "7", solver=name)
    assert program.solver.path is VP
  for name in ("dpm2m", "sde_euler", "sde_heun"):
    assert for_path(SOLVERS[name], VP).path is VP
  assert for_path(SOLVERS["midpoint"], VP) is SOLVERS["midpoint"]
  found = get_solver("sde_heun", form="linear", last="none", rtol=1.0)
  assert (found.form, found.last) == ("linear", "none")


@pytest.mark.long
def test_networks_that_predict_something_else_are_sampled(pixels):
  noise = dataclasses.replace(
    pixels.network, objective=Objective("vp", "noise", "none")
  )
  other = replaced(pixels, network=noise)
  for name in ("dpm2m", "sde_heun"):
    (found,) = other("3 1", **CALL, solver=name).images
    assert np.isfinite(found).all()


def test_guidance_acts_on_the_first_channels(latents):
  """As in the original: the fourth is conditional alone in each step."""
  call = CALL | dict(num_inference_steps=1, solver="euler")
  plain, strong = (
    latents(tiny.PROMPT, guidance_scale=s, **call).images[0] for s in (1.0, 5.0)
  )
  np.testing.assert_allclose(strong[..., 3], plain[..., 3], atol=1e-5)
  assert distance(strong[..., :3], plain[..., :3]) > 0.1
