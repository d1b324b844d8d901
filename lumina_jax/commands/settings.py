"""Settings: options of sampling under the original's names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lumina_jax.flow import solvers
from lumina_jax.sampling.options import ADAPTIVE, SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig

# Adaptive solvers of the original that are not available.
UNAVAILABLE = ("dopri8", "bosh3", "fehlberg2", "adaptive_heun")
TIME_AWARE, NO_SCALING = "Time-aware", "None"
METHODS = (TIME_AWARE, NO_SCALING)
TOLERANCES = {"atol": 1e-6, "rtol": 1e-3}  # Those of the original's file.
# Settings that concern sizes beyond training, by the rule that reads them.
SCALING = {
  "ntk_plain": ("ntk_scaling",),
  "watershed": ("scaling_method", "scaling_watershed"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings by the original's names; None = the pipeline's default.

  Attributes:
    ckpt: folder or hub name of a pipeline.
    ckpt_lm: folder or hub name of its text encoder.
    token: for gated repositories of the hub.
    resolution: (width, height) in pixels, in the original's order.
    num_sampling_steps: points of the time grid, one more than its steps.
    cfg_scale: guidance scale.
    solver: a name of `solvers.SOLVERS`.
    t_shift: shift of the time grid.
    seed: of the noise; 0 is a seed like any other.
    proportional_attn: whether scores of attention scale with the size.
    ntk_scaling: whether a Flag-DiT stretches positions beyond trained sizes.
    scaling_method: rule of a Next-DiT, "Time-aware" or "None".
    scaling_watershed: time at which the time-aware rule changes.
    atol: absolute error that dopri5 allows in a step.
    rtol: relative error that dopri5 allows in a step.
  """

  ckpt: str | None = None
  ckpt_lm: str | None = None
  token: str | None = dataclasses.field(default=None, repr=False)
  resolution: tuple[int, int] | None = None
  num_sampling_steps: int | None = None
  cfg_scale: float | None = None
  solver: str | None = None
  t_shift: float | None = None
  seed: int | None = None
  proportional_attn: bool | None = None
  ntk_scaling: bool | None = None
  scaling_method: str | None = None
  scaling_watershed: float | None = None
  atol: float | None = None
  rtol: float | None = None

  def __post_init__(self):
    if self.solver in UNAVAILABLE:
      raise ValueError(
        f"solver {self.solver!r} is not available; use dopri5, which also "
        "adapts its steps, or midpoint (the original's advice, 20 points)"
      )
    if self.solver is not None:
      solvers.get_solver(self.solver)
    points = self.num_sampling_steps
    if points is not None and points < 2:
      raise ValueError(
        f"num_sampling_steps = {points}: N points of time are N - 1 steps; use "
        "at least 2"
      )
    if self.scaling_method not in (None, *METHODS):
      raise ValueError(
        f"scaling_method {self.scaling_method!r}: use {' or '.join(METHODS)}"
      )
    watershed = self.scaling_watershed
    if watershed is not None and not 0 <= watershed <= 1:
      raise ValueError(
        f"scaling_watershed = {watershed}: must be a time from 0 to 1"
      )

  def option_values(
    self, defaults: SamplingOptions, sizes: SizeConfig, flags: Mapping[str, Any]
  ) -> tuple[dict[str, Any], list[str]]:
    """Sampling options, and remarks on settings that have no effect.

    A settings file often belongs to another network, so settings without
    effect are no errors.

    Args:
      defaults: options of the pipeline.
      sizes: of the pipeline.
      flags: options that flags set; they override the settings.
    """
    rule = flags.get("rope_scaling", defaults.rope_scaling)
    useful = SCALING.get(rule, ())
    useful += ("proportional_attn",) if sizes.known else ()
    scaling = (*sum(SCALING.values(), ()), "proportional_attn")
    given = [name for name in scaling if getattr(self, name) is not None]
    remarks = []
    if unused := [name for name in given if name not in useful]:
      remarks.append(
        f"{', '.join(unused)}: this network has no such rule for sizes beyond "
        "those of training; not used"
      )
    points = self.num_sampling_steps
    values = {
      "num_inference_steps": points and points - 1,
      "guidance_scale": self.cfg_scale,
      "solver": self.solver,
      "shift": self.t_shift,
    }
    if sizes.known:
      values["proportional_attention"] = self.proportional_attn
    off = self.ntk_scaling is False, self.scaling_method == NO_SCALING
    switches = "ntk_scaling", "scaling_method"
    if any(o and s in useful for o, s in zip(off, switches, strict=True)):
      values["rope_scaling"] = flags.get("rope_scaling", "none")
    elif "scaling_watershed" in useful:
      values["scaling_watershed"] = self.scaling_watershed
    solver = flags.get("solver", self.solver or defaults.solver)
    tolerances = {name: getattr(self, name) for name in TOLERANCES}
    if solver in ADAPTIVE:
      values |= tolerances
    elif any(tolerances[k] not in (None, v) for k, v in TOLERANCES.items()):
      named = [f"ode.{k}" for k, v in tolerances.items() if v is not None]
      remarks.append(
        f"{', '.join(named)}: solvers with fixed steps have no tolerance; not "
        "used"
      )
    values = {k: v for k, v in values.items() if v is not None}
    return values | dict(flags), remarks
