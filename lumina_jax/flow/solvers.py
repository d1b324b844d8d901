"""All solvers by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from lumina_jax.files.suggest import check_name
from lumina_jax.flow import adaptive, multistep, ode, sde
from lumina_jax.flow.ode import Solver
from lumina_jax.flow.path import Path

SOLVERS: dict[str, Solver] = {
  "euler": ode.EULER,
  "midpoint": ode.MIDPOINT,
  "heun": ode.HEUN,
  "heun3": ode.HEUN3,
  "rk4": ode.RK4,
  "rk4_38": ode.RK4_38,
  "ab2": multistep.AdamsBashforth(),
  "dpm2m": multistep.DpmSolver(),
  "dopri5": adaptive.DormandPrince(),
  "sde_euler": sde.EulerMaruyama(),
  "sde_heun": sde.Heun(),
}


def solver(name: str) -> Solver:
  """The solver of that name.

  Raises:
    ValueError: if there is none; near names are suggested.
  """
  check_name("solver", name, SOLVERS)
  return SOLVERS[name]


def configured(name: str, **options: Any) -> Solver:
  """The solver of that name with those of the options that it knows.

  Raises:
    ValueError: for a name or an option's value that is none.
  """
  return _with(solver(name), options)


def on_path(solver: Solver, path: Path) -> Solver:
  """The solver for velocities of that path, where that matters to it."""
  return _with(solver, {"path": path})


def _with(solver: Solver, options: dict[str, Any]) -> Solver:
  known = {field.name for field in dataclasses.fields(solver)}
  mine = {key: value for key, value in options.items() if key in known}
  return dataclasses.replace(solver, **mine) if mine else solver
