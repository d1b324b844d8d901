"""The learning rate: warm-up, peak, decay."""

import optax

from lumina_jax.training.optimizer_config import OptimizerConfig


def make_schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
  """The learning rate as a function of the number of updates so far.

  All schedules warm up linearly from 0 to the peak. Then "constant" stays
  there, "cosine" falls to `final_share` of the peak at `steps` along half a
  cosine, and "wsd" stays until `decay_steps` before the end and falls to that
  share linearly. Warm-up, stable, decay is by Hu et al. 2024 (MiniCPM, section
  4), the linear decay by Hägele et al. 2024 ("Scaling laws and compute-optimal
  training beyond fixed training durations"). Until it decays, a "wsd" run does
  not depend on its length.

  Args:
    cfg: options of the optimizer.
    steps: steps of the whole run.

  Raises:
    ValueError: if warm-up and decay do not fit into the run.
  """
  if cfg.warmup_steps >= steps:
    raise ValueError(
      f"optimizer.warmup_steps = {cfg.warmup_steps} must be below "
      f"training.steps = {steps}"
    )
  if cfg.warmup_steps + cfg.decay_steps > steps:
    raise ValueError(
      f"optimizer.warmup_steps = {cfg.warmup_steps} and decay_steps = "
      f"{cfg.decay_steps} do not fit into training.steps = {steps}; shorten "
      "one of them"
    )
  peak = cfg.learning_rate
  end = peak * cfg.final_share
  if cfg.decay == "cosine":
    return optax.warmup_cosine_decay_schedule(
      0.0, peak, cfg.warmup_steps, steps, end_value=end
    )
  start = 0.0 if cfg.warmup_steps else peak
  warmup = optax.linear_schedule(start, peak, max(cfg.warmup_steps, 1))
  if cfg.decay == "constant":
    return warmup
  decay = optax.linear_schedule(peak, end, cfg.decay_steps)
  return optax.join_schedules([warmup, decay], [steps - cfg.decay_steps])
