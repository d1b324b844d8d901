"""Solvers by name."""

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


def get_solver(name: str, **options: Any) -> Solver:
  """The solver of that name.

  Args:
    name: a key of `SOLVERS`.
    **options: fields of solvers, such as rtol; those that this solver lacks are
      ignored.

  Raises:
    ValueError: for an unknown name, with near names, or an invalid option.
  """
  check_name("solver", name, SOLVERS)
  return _with(SOLVERS[name], options)


def for_path(solver: Solver, path: Path) -> Solver:
  """The solver for velocities of that path; most solvers need no change."""
  return _with(solver, {"path": path})


def _with(solver: Solver, options: dict[str, Any]) -> Solver:
  fields = {field.name for field in dataclasses.fields(solver)}
  options = {key: value for key, value in options.items() if key in fields}
  return dataclasses.replace(solver, **options) if options else solver
