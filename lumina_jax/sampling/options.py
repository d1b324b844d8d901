"""SamplingOptions: how a call samples. Each option is declared once, here.

Keyword arguments of calls, flags of the command, the section `sampling` of
configs, and the metadata in files are all derived from these fields.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lumina_jax.backbone.rope import RULES, check_rule
from lumina_jax.flow import schedule as schedules
from lumina_jax.flow import sde, solvers

ADAPTIVE = ("dopri5",)
STOCHASTIC = ("sde_euler", "sde_heun")


def option(
  help: str,
  default: Any = dataclasses.MISSING,
  *,
  per_sample: bool = False,
  alias: str | None = None,
  needs: Mapping[str, tuple[Any, ...]] | None = None,
) -> Any:
  """A field of options.

  Args:
    help: describes the option, for docs and `--help`.
    default: of the config; without one every config must set the field.
    per_sample: whether calls may pass one value for each prompt.
    alias: another keyword for the option.
    needs: values of another option without which this one has no effect.
  """
  metadata = dict(
    help=help, per_sample=per_sample, alias=alias, needs=needs or {}
  )
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
  """How to sample; a call may override each field by a keyword argument.

  A field may be a group: a frozen dataclass, whose fields are flags such as
  `--group.field`. Groups are static: other values compile another program.

  Raises:
    ValueError: for a value out of range.
  """

  solver: str = option(f"Integrator: {', '.join(solvers.SOLVERS)}.")
  num_inference_steps: int = option(
    "Integration steps. Each costs one evaluation of the network for every "
    "stage of the solver; guidance doubles that. dopri5 chooses its own steps."
  )
  guidance_scale: float = option(
    "Scale of classifier-free guidance; 1 = none, at half the cost.",
    per_sample=True,
  )
  shift: float = option(
    "Shift of the time grid; above 1 spends more steps near noise."
  )
  strength: float = option(
    "Denoising strength with an initial image, above 0 and at most 1: the "
    "share of the steps that run.",
    0.6,
  )
  schedule: str | tuple[float, ...] = option(
    f"Time grid: {', '.join(schedules.SCHEDULES)} or {schedules.DIFFUSERS}; or "
    "times from 0 (noise) to 1 (data), which are not shifted.",
    "uniform",
  )
  shift_tokens: int = option(
    "Tokens for which the shift is meant; it grows with the root of a sample's "
    "tokens. 0 = the same shift for all sizes.",
    0,
  )
  sigmas: tuple[float, ...] = option(
    "Noise levels to step through in place of a schedule, falling from 1; the "
    "last step leads to 0.",
    (),
  )
  guidance_interval: tuple[float, float] = option(
    "Times, from 0 (noise) to 1 (data), between which guidance acts.",
    (0.0, 1.0),
  )
  guidance_renorm: float = option(
    "Longest guided velocity, in lengths of the conditional one; 0 = any.", 0.0
  )
  guidance_channels: int = option(
    "Number of first channels that are guided; 0 = all. The original guides 3 "
    "of 4.",
    0,
  )
  rope_scaling: str = option(
    f"How positions stretch beyond the trained size: {', '.join(RULES)}.",
    "none",
  )
  scaling_watershed: float = option(
    "Time at which rope_scaling watershed changes from linear to NTK.",
    0.3,
    needs={"rope_scaling": ("watershed",)},
  )
  proportional_attention: bool = option(
    "Scale scores of self-attention by the size of the sample (Lumina-Next, "
    "section 2.1).",
    False,
    alias="proportional_attn",
  )
  rtol: float = option(
    "Relative error that dopri5 allows in a step.",
    1e-3,
    needs={"solver": ADAPTIVE},
  )
  atol: float = option(
    "Absolute error that dopri5 allows in a step, in units of the latents.",
    1e-6,
    needs={"solver": ADAPTIVE},
  )
  diffusion: str = option(
    f"Diffusion of the sde solvers: {', '.join(sde.FORMS)}.",
    "sigma",
    needs={"solver": STOCHASTIC},
  )
  last_step: str = option(
    f"Last step of the sde solvers: {', '.join(sde.LAST)}.",
    "tweedie",
    needs={"solver": STOCHASTIC},
  )

  def __post_init__(self):
    for name in (self.solver, *ADAPTIVE, *STOCHASTIC):
      configured_solver(self, name)  # Any of them may be chosen by a call.
    check_rule(self.rope_scaling)
    if isinstance(self.schedule, str) and self.schedule != schedules.DIFFUSERS:
      schedules.get_schedule(self.schedule)
    start, stop = self.guidance_interval
    checks = {
      "num_inference_steps": (self.num_inference_steps >= 1, "at least 1"),
      "guidance_scale": (math.isfinite(self.guidance_scale), "a finite number"),
      "shift": (0 < self.shift < math.inf, "positive and finite"),
      "strength": (
        0 < self.strength <= 1,
        "above 0 (keeps the image) and at most 1 (ignores it)",
      ),
      "shift_tokens": (self.shift_tokens >= 0, "0 for all sizes, or positive"),
      "guidance_interval": (
        0 <= start < stop <= 1,
        "two times from 0 (noise) to 1 (data), the first below the second",
      ),
      "guidance_renorm": (
        0 <= self.guidance_renorm < math.inf,
        "0 for any length, or positive",
      ),
      "guidance_channels": (
        self.guidance_channels >= 0,
        "0 for all channels, or positive",
      ),
      "scaling_watershed": (
        0 <= self.scaling_watershed <= 1,
        "a time from 0 (noise) to 1 (data)",
      ),
    }
    for name, (valid, wanted) in checks.items():
      if not valid:
        raise ValueError(f"{name} = {getattr(self, name)}: must be {wanted}")

  @property
  def steps(self) -> int:
    """Integration steps of a whole solve, explicit times considered."""
    if self.sigmas:
      return len(self.sigmas)
    if not isinstance(self.schedule, str):
      return max(len(self.schedule) - 1, 0)
    return self.num_inference_steps


def configured_solver(options: SamplingOptions, name: str = "") -> Any:
  """The solver of that name, default its own, configured by the options."""
  return solvers.get_solver(
    name or options.solver,
    rtol=options.rtol,
    atol=options.atol,
    form=options.diffusion,
    last=options.last_step,
  )
