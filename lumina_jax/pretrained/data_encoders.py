"""Pictures to latents and captions to features, by frozen encoders.

What writes shards calls these once for all records; what trains on pictures as
they are calls them for each draw, and gets the same but for rounding.

B pictures of a batch, H rows and W columns of pixels, h and w of latents,
C channels, S tokens of a caption, E width.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import linen as nn

from data_pipelines import shard_record
from lumina_jax.encoders import vae
from lumina_jax.encoders.autoencoder import Autoencoder
from lumina_jax.encoders.captions import CaptionEncoder
from lumina_jax.encoders.frozen import FrozenTextConfig
from lumina_jax.interop.language import open_language
from lumina_jax.interop.vae import load_vae
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import RULES
from lumina_jax.pretrained import encoders, hub
from lumina_jax.pretrained.options import Options

ENDS = 1 << 16  # Bytes at either end of weights that tell them from others.


@functools.partial(jax.jit, static_argnames="cfg")
def _moments(params, pixels, *, cfg):
  with nn.logical_axis_rules(RULES):
    mean, logvar = vae.moments(cfg, params, pixels)
  mean = (mean - cfg.shift_factor) * cfg.scaling_factor
  return mean, jnp.exp(logvar / 2) * cfg.scaling_factor


class PictureEncoder:
  """An autoencoder that sees batches of one number of pictures.

  Every size of pictures is a program of its own, compiled when it first comes.
  Threads may share an encoder.

  Attributes:
    factor: pixels along a side of a latent.
    channels: C of the latents.
    identity: of the autoencoder, to be written into shards.
  """

  def __init__(
    self,
    autoencoder: Autoencoder,
    batch_size: int = 1,
    identity: dict[str, Any] | None = None,
  ):
    """Takes an autoencoder.

    Args:
      autoencoder: of pictures.
      batch_size: B; what is less is padded, so that no number of pictures
        compiles another program or is rounded otherwise.
      identity: where it comes from, see `identity`.

    Raises:
      ValueError: if batch_size is not positive.
    """
    if batch_size < 1:
      raise ValueError(f"batch_size = {batch_size}: pictures, at least 1")
    self._autoencoder, self._batch_size = autoencoder, batch_size
    self.factor = autoencoder.cfg.factor
    self.channels = autoencoder.cfg.latent_channels
    self.identity = dict(identity or {}) | _plain(autoencoder.cfg)

  def moments(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distribution of pictures' latents, shifted and scaled.

    Of z ~ N(m, s^2) the latents are (z - shift) scale, so that their mean is
    (m - shift) scale and their deviation s scale.

    Args:
      pixels: `f32[n, H, W, C]` in [-1, 1], any n.

    Returns:
      Mean and deviation, `f32[n, h, w, C]` each.

    Raises:
      ValueError: if they are no pictures of this autoencoder.
    """
    cfg, most = self._autoencoder.cfg, self._batch_size
    n, H, W, C = pixels.shape
    if cfg.channels != C or H % cfg.factor or W % cfg.factor:
      raise ValueError(
        f"pictures of {H} x {W} x {C}: the autoencoder takes {cfg.channels} "
        f"channels and sides that are multiples of {cfg.factor}"
      )
    done = []
    for start in range(0, n, most):
      batch = pixels[start : start + most]
      missing = most - len(batch)
      batch = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)])
      params = self._autoencoder.params
      with processes.use_mesh_of(params):
        pair = _moments(params, batch, cfg=cfg)
      done.append([np.asarray(x)[: most - missing] for x in pair])
    mean, std = (np.concatenate(x) for x in zip(*done, strict=True))
    return mean, std

  def to_latents(
    self, pixels: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """Latents of one picture: `f32[H, W, C]` -> `f32[h, w, C]`.

    Drawn from their distribution with the numbers of rng. A record of a shard
    gives the same with the same rng, but for its rounding to float16.
    """
    mean, std = self.moments(pixels[None])
    return shard_record.draw(mean[0], std[0], rng)


class TextFeatures:
  """A frozen language model, its features in bfloat16.

  Attributes:
    cfg: how captions become features.
    identity: of the language model, to be written into shards.
  """

  def __init__(
    self,
    encoder: CaptionEncoder,
    cfg: FrozenTextConfig,
    identity: dict[str, Any] | None = None,
  ):
    """Takes an encoder, its configuration and where it comes from."""
    self._encoder, self.cfg = encoder, cfg
    self.identity = dict(identity or {}) | {
      "tokenizer": encoder.tokenizer.identity,
      "frozen": dataclasses.asdict(cfg),
    }

  def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
    """Features of captions, `bf16[S, E]` each.

    They depend on these captions alone, down to the last bit: what was encoded
    before, in batches of other shapes, is not recalled.
    """
    self._encoder.forget()
    return [
      features.astype(ml_dtypes.bfloat16)
      for features in self._encoder.encode(captions)
    ]


def load_pictures(
  folder: str, batch_size: int = 1, dtype: str = "float32"
) -> PictureEncoder:
  """The autoencoder of a folder, or of a repository of the hub.

  Args:
    folder: an autoencoder's, or a pipeline's with vae/ in it.
    batch_size: pictures that are encoded at once.
    dtype: that it computes in.

  Raises:
    FileNotFoundError, ValueError: see `load_vae`.
  """
  at = _part(folder, "vae")
  return PictureEncoder(
    load_vae(at, dtype), batch_size, {"path": str(folder)} | _digest(at)
  )


def load_captions(
  folder: str,
  tokenizer: str | None = None,
  dtype: str = "bfloat16",
  **reading: Any,
) -> TextFeatures:
  """The language model of a folder, or of a repository of the hub.

  Its weights are read when the first caption is encoded.

  Args:
    folder: a language model's, or a pipeline's with text_encoder/ in it.
    tokenizer: folder of its tokenizer; None = beside the model.
    dtype: that it computes in.
    **reading: fields of `FrozenTextConfig` but the width, which it has itself.

  Raises:
    FileNotFoundError, ValueError: see `pretrained.encoders.text_encoder`.
  """
  at = _part(folder, "text_encoder")
  cfg = FrozenTextConfig(width=1, **reading)
  width = open_language(at, cfg.hidden, dtype).cfg.width
  cfg = dataclasses.replace(cfg, width=width)
  options = Options(text_encoder=folder, tokenizer=tokenizer, dtype=dtype)
  encoder, _ = encoders.text_encoder(None, None, cfg, options)
  where = {"path": str(folder), "dtype": dtype}
  return TextFeatures(encoder, cfg, where | _digest(at))


def _part(folder: str, name: str) -> pathlib.Path:
  at = hub.find(folder, within=name)
  return at / name if (at / name).is_dir() else at


def _digest(folder: pathlib.Path) -> dict[str, str]:
  """Tells weights from others, without reading gigabytes.

  Of JSON all counts, of safetensors the size and both ends.
  """
  digest = hashlib.sha256()
  for path in sorted(folder.glob("*")):
    if path.suffix == ".json" and not path.name.startswith("tokenizer"):
      digest.update(f"{path.name} ".encode() + path.read_bytes())
    elif path.suffix == ".safetensors":
      size = path.stat().st_size
      digest.update(f"{path.name} {size} ".encode())
      with path.open("rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(size - ENDS, 0))
        digest.update(file.read(ENDS))
  return {"sha256": digest.hexdigest()}


def _plain(cfg: vae.VaeConfig) -> dict[str, Any]:
  return {
    "channels": cfg.latent_channels,
    "factor": cfg.factor,
    "scaling_factor": cfg.scaling_factor,
    "shift_factor": cfg.shift_factor,
    "dtype": cfg.dtype,
  }
