"""Groups, frozen parameters and schedules against torch's, on one gradient."""

import jax
import numpy as np
import optax
import pytest

from lumina_jax.training.optimizer import make_optimizer
from lumina_jax.training.optimizer_config import OptimizerConfig

torch = pytest.importorskip(
  "torch", reason="torch is an oracle: pip install -r requirements-parity.txt"
)
pytestmark = pytest.mark.parity

STEPS, WARMUP, DECAY = 12, 3, 4
CFG = OptimizerConfig(
  learning_rate=1e-2,
  warmup_steps=WARMUP,
  decay="wsd",
  decay_steps=DECAY,
  final_share=0.1,
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  weight_decay=0.1,
  clip=0.5,
  ema_decay=0.99,
  groups=(("text", 0.5, 0.0), ("table", 3.0, 0.2)),
  frozen=("embed",),
)


def test_groups_follow_torch_through_warm_up_and_decay():
  rng = np.random.default_rng(0)
  start = {
    name: rng.normal(size=size).astype(np.float32)
    for name, size in (
      ("kernel", (3, 4)), ("text", (5,)), ("table", (2, 3)), ("embed", (4,)),
    )
  }  # fmt: skip
  theirs = {
    name: torch.nn.Parameter(torch.tensor(value), requires_grad=name != "embed")
    for name, value in start.items()
  }
  trained = [p for p in theirs.values() if p.requires_grad]
  adamw = torch.optim.AdamW(
    [
      dict(params=[theirs["kernel"]], lr=1e-2, weight_decay=0.1),
      dict(params=[theirs["text"]], lr=0.5e-2, weight_decay=0.0),
      dict(params=[theirs["table"]], lr=3e-2, weight_decay=0.2),
    ],
    betas=(CFG.b1, CFG.b2),
    eps=CFG.eps,
  )
  falls = torch.optim.lr_scheduler.LinearLR(adamw, 1.0, 0.1, DECAY)
  rises = torch.optim.lr_scheduler.LambdaLR(adamw, lambda n: n / WARMUP)
  flat = torch.optim.lr_scheduler.ConstantLR(adamw, 1.0)
  rates = torch.optim.lr_scheduler.SequentialLR(
    adamw, [rises, flat, falls], [WARMUP, STEPS - DECAY]
  )
  tx = make_optimizer(CFG, STEPS)
  ours, state = start, tx.init(start)
  for _ in range(STEPS):
    grads = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), start
    )
    updates, state = tx.update(grads, state, ours)
    ours = optax.apply_updates(ours, updates)
    for name, parameter in theirs.items():
      if parameter.requires_grad:
        parameter.grad = torch.tensor(grads[name])
    torch.nn.utils.clip_grad_norm_(trained, CFG.clip)
    adamw.step()
    rates.step()
  for name, parameter in theirs.items():
    expected = parameter.detach().numpy()
    np.testing.assert_allclose(ours[name], expected, atol=1e-5)
  np.testing.assert_array_equal(ours["embed"], start["embed"])
