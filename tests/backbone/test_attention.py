"""A network that cannot run on a mesh is refused before anything runs."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from support.configs import small_config

from lumina_jax.backbone import attention
from lumina_jax.parallel.mesh import AXES


def check(context=1, tensor=1, packed=True, **model):
  """Checks the digits' network, of 2 heads, on an imaginary mesh."""
  config = small_config(**{f"model__{k}": v for k, v in model.items()})
  shape = dict(zip(AXES, (1, 1, context, tensor), strict=True))
  devices = np.array(jax.devices()[:1])
  mesh = types.SimpleNamespace(shape=shape, devices=devices)
  return attention.describe(config.model, mesh, 40, packed)


@pytest.fixture(autouse=True)
def any_mesh(monkeypatch):
  one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)
  set_mesh = jax.set_mesh
  monkeypatch.setattr(jax, "set_mesh", lambda _: set_mesh(one))


@pytest.mark.parametrize(
  ("mesh", "model", "expected"),
  [
    (dict(), dict(), "chunked, remat full"),
    (dict(context=4), dict(sequence_split="ring"), "Ulysses of 1 x ring of 4"),
    (dict(context=4, tensor=2), dict(sequence_split="1"), "ring of 4 devices"),
    (dict(context=2), dict(attention_kernel="dense"), "dense, remat full, "),
    (dict(context=2), dict(sequence_split="gather"), "gathered from 2 devices"),
  ],
)
def test_the_attention_of_a_network_is_described(mesh, model, expected):
  assert expected in check(**mesh, **model)


@pytest.mark.parametrize(
  ("mesh", "model", "message"),
  [
    (dict(tensor=4), dict(), r"model\.heads = 2 .* mesh\.tensor = 4 devices"),
    (dict(tensor=2), dict(kv_heads=1), r"model\.kv_heads = 1 do not divide"),
    (dict(context=4), dict(sequence_split="4"), r"use one of \[1, 2\]"),
    (dict(), dict(attention_kernel="splash"), "not on 'cpu'; use 'auto'"),
    (dict(), dict(attention_kernel="cudnn"), "not on 'cpu'; use 'auto'"),
    (
      dict(context=4),
      dict(attention_kernel="dense", sequence_split="ring"),
      "dense cannot serve a ring",
    ),
  ],
)
def test_unsupported_meshes_and_kernels_are_refused(mesh, model, message):
  with pytest.raises(ValueError, match=message):
    check(**mesh, **model)
