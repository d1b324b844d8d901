"""Solvers by name, with their options and their path."""

import pytest

from lumina_jax.flow.path import LINEAR, VP
from lumina_jax.flow.solvers import SOLVERS, for_path, get_solver


def test_options_reach_the_solvers_that_have_them():
  options = dict(rtol=0.1, atol=0.2, form="linear", last="none")
  adaptive, heun = (get_solver(n, **options) for n in ("dopri5", "sde_heun"))
  assert (adaptive.rtol, adaptive.atol) == (0.1, 0.2)
  assert (heun.form, heun.last) == ("linear", "none")
  assert get_solver("midpoint", **options) is SOLVERS["midpoint"]


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_that_depend_on_the_path_get_it(name):
  solver = SOLVERS[name]
  assert hash(solver) == hash(get_solver(name))
  if name in ("dpm2m", "sde_euler", "sde_heun"):
    assert solver.path is LINEAR and for_path(solver, VP).path is VP
  else:
    assert for_path(solver, VP) is solver


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("dopri6", {}, "'dopri6'; did you mean 'dopri5'"),
    ("dopri5", {"rtol": 0}, "rtol = 0: must be positive"),
    ("sde_euler", {"form": "linea"}, "'linea'; did you mean 'linear'"),
  ],
)
def test_unknown_names_and_invalid_options_are_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    get_solver(name, **options)
