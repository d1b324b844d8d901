"""Guidance: a velocity field in, a steered velocity field out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lumina_jax.flow.ode import Velocity


def classifier_free(velocity: Velocity, scale: jax.Array | float) -> Velocity:
  """v = v_u + s (v_c - v_u) (Ho and Salimans 2022, equation 6).

  Args:
    velocity: takes twice the batch, conditional rows first and unconditional
      rows after them, in one call.
    scale: s, a scalar or something that broadcasts against a half batch; 1 is
      the plain conditional field, and then costs a needless second half.
  """

  def guided(x: jax.Array, t: jax.Array) -> jax.Array:
    both = velocity(jnp.concatenate([x, x]), t)
    conditional, unconditional = jnp.split(both, 2)
    return unconditional + scale * (conditional - unconditional)

  return guided
