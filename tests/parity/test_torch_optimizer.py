"""The optimizer against torch's, on the same gradients."""

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


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_clipped_adamw_follows_torch(weight_decay, clip):
  cfg = OptimizerConfig(
    learning_rate=1e-2,
    warmup_steps=0,
    decay="constant",
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=weight_decay,
    clip=clip,
    ema_decay=0.99,
  )
  rng = np.random.default_rng(0)
  start = {
    name: rng.normal(size=size).astype(np.float32)
    for name, size in (("a", (3, 4)), ("b", (5,)))
  }
  theirs = {
    name: torch.nn.Parameter(torch.tensor(value))
    for name, value in start.items()
  }
  adamw = torch.optim.AdamW(
    theirs.values(),
    lr=cfg.learning_rate,
    betas=(cfg.b1, cfg.b2),
    eps=cfg.eps,
    weight_decay=weight_decay,
  )
  tx = make_optimizer(cfg, steps=10)
  ours, state = start, tx.init(start)
  for _ in range(10):
    grads = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), start
    )
    updates, state = tx.update(grads, state, ours)
    ours = optax.apply_updates(ours, updates)
    for name, parameter in theirs.items():
      parameter.grad = torch.tensor(grads[name])
    torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
    adamw.step()
  for name, parameter in theirs.items():
    np.testing.assert_allclose(
      ours[name], parameter.detach().numpy(), atol=1e-5
    )
