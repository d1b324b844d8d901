"""Frozen networks around the backbone of a run, as its config names them."""

from __future__ import annotations

from typing import NamedTuple

from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.captions import CaptionEncoder
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.pretrained import encoders
from lumina_jax.pretrained.options import Options
from lumina_jax.training.run_config import RunConfig

REMEMBERED = 4096  # Captions of a run whose features stay in memory.


class RunEncoders(NamedTuple):
  """Attributes: an autoencoder and a language model, None where there is none.

  Each process has its own, on its first device.
  """

  vae: Autoencoder | None
  text: CaptionEncoder | None


def load(config: RunConfig) -> RunEncoders:
  """Loads what `config.encoders` names; the language model when it is needed.

  Raises:
    FileNotFoundError: if a folder is not there.
    ValueError: if one does not fit the network, naming the key.
  """
  named, model = config.encoders, config.model
  options = Options(dtype=named.dtype)
  vae, _ = encoders.vae(named.vae or None, model, options)
  text = None
  if isinstance(config.text_encoder, FrozenTextConfig):
    words = named.tokenizer or None
    text, _ = encoders.text_encoder(
      named.text, words, config.text_encoder, options
    )
    text.remember(REMEMBERED)
  return RunEncoders(vae, text)
