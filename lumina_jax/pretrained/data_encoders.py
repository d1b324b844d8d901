"""Frozen encoders for training data: samples to latents, captions to features.

`lumina_jax.encode` calls them once for all records. Training on unencoded data
calls them for each draw, and gets the same results up to rounding.

B samples of a batch, C channels, S tokens of a caption, E width of features.
"""

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
from lumina_jax.encoders.caption_encoder import CaptionEncoder
from lumina_jax.encoders.text_features import TextFeaturesConfig
from lumina_jax.interop.language import open_language
from lumina_jax.interop.vae import load_vae
from lumina_jax.parallel import processes
from lumina_jax.parallel.mesh import RULES
from lumina_jax.pretrained import encoders
from lumina_jax.pretrained.options import Options

DIGEST_BYTES = 1 << 16  # Bytes at both ends of weights that identify them.


@functools.partial(jax.jit, static_argnames="cfg")
def _moments(params, pixels, *, cfg):
  with nn.logical_axis_rules(RULES):
    mean, logvar = vae.moments(cfg, params, pixels)
  mean = (mean - cfg.shift_factor) * cfg.scaling_factor
  return mean, jnp.exp(logvar / 2) * cfg.scaling_factor


class LatentEncoder:
  """An autoencoder that encodes batches of a fixed number of samples.

  Each size of samples compiles one program. Threads may share an encoder.

  Attributes:
    factor: pixels per latent along a side.
    channels: channels C of latents.
    identity: which autoencoder it is, as JSON values for shards.
  """

  def __init__(
    self,
    autoencoder: Autoencoder,
    batch_size: int = 1,
    identity: dict[str, Any] | None = None,
  ):
    """Wraps an autoencoder.

    Args:
      autoencoder: the autoencoder.
      batch_size: B. Smaller batches are padded, so that their size neither
        compiles a program nor changes the rounding.
      identity: where it comes from, as JSON values.

    Raises:
      ValueError: if batch_size is not positive.
    """
    if batch_size < 1:
      raise ValueError(f"batch_size = {batch_size}: must be positive")
    self._autoencoder, self._batch_size = autoencoder, batch_size
    cfg = autoencoder.cfg
    self.factor, self.channels = cfg.factor, cfg.latent_channels
    self.identity = dict(identity or {}) | {
      "channels": cfg.latent_channels,
      "factor": cfg.factor,
      "scaling_factor": cfg.scaling_factor,
      "shift_factor": cfg.shift_factor,
      "dtype": cfg.dtype,
    }

  def moments(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of latents, shifted and scaled.

    For z ~ N(m, s^2) the latents are (z - shift) scale: their mean is
    (m - shift) scale and their standard deviation is s scale.

    Args:
      pixels: `f32[n, H, W, C]` in [-1, 1], any n.

    Returns:
      Mean and standard deviation, `f32[n, h, w, C]` each.

    Raises:
      ValueError: if the autoencoder does not take samples of this shape.
    """
    cfg, most = self._autoencoder.cfg, self._batch_size
    n, H, W, C = pixels.shape
    if cfg.channels != C or H % cfg.factor or W % cfg.factor:
      raise ValueError(
        f"samples of {H} x {W} x {C}: the autoencoder takes {cfg.channels} "
        f"channels and sides that are multiples of {cfg.factor}"
      )
    pairs = []
    for start in range(0, n, most):
      batch = pixels[start : start + most]
      missing = most - len(batch)
      batch = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)])
      params = self._autoencoder.params
      with processes.use_mesh_of(params):
        pair = _moments(params, batch, cfg=cfg)
      pairs.append([np.asarray(x)[: most - missing] for x in pair])
    mean, std = (np.concatenate(x) for x in zip(*pairs, strict=True))
    return mean, std

  def to_latents(
    self, pixels: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """Samples latents of one sample: `f32[H, W, C]` -> `f32[h, w, C]`.

    With the same rng, the record of a shard gives the same latents, up to its
    rounding to float16.
    """
    mean, std = self.moments(pixels[None])
    return shard_record.sample_latents(mean[0], std[0], rng)


class FeatureEncoder:
  """A frozen language model; its features are bfloat16.

  Attributes:
    cfg: how captions become features.
    identity: which language model it is, as JSON values for shards.
  """

  def __init__(
    self,
    encoder: CaptionEncoder,
    cfg: TextFeaturesConfig,
    identity: dict[str, Any] | None = None,
  ):
    """Wraps an encoder.

    Args:
      encoder: the language model with its tokenizer.
      cfg: how captions become features.
      identity: where it comes from, as JSON values.
    """
    self._encoder, self.cfg = encoder, cfg
    self.identity = dict(identity or {}) | {
      "tokenizer": encoder.tokenizer.identity,
      "frozen": dataclasses.asdict(cfg),
    }

  def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
    """Encodes captions, `bf16[S, E]` each.

    Features depend on these captions alone, down to the last bit: features
    from batches of other shapes are not reused.
    """
    self._encoder.clear_memory()
    return [
      features.astype(ml_dtypes.bfloat16)
      for features in self._encoder.encode(captions)
    ]


def load_latent_encoder(
  folder: str, batch_size: int = 1, dtype: str = "float32"
) -> LatentEncoder:
  """Loads the autoencoder of a folder, or of a repository of the hub.

  Args:
    folder: folder of an autoencoder, or of a pipeline with vae/ in it.
    batch_size: samples that are encoded at once.
    dtype: dtype of its computation.

  Raises:
    FileNotFoundError: if the folder does not exist; see `load_vae`.
    ValueError: if it is not supported; see `load_vae`.
  """
  path = encoders.component_folder(folder, "vae", Options())
  identity = {"path": str(folder)} | _digest(path)
  return LatentEncoder(load_vae(path, dtype), batch_size, identity)


def load_feature_encoder(
  folder: str,
  tokenizer: str | None = None,
  dtype: str = "bfloat16",
  **text: Any,
) -> FeatureEncoder:
  """Loads the language model of a folder, or of a repository of the hub.

  Its weights are read when it encodes the first caption.

  Args:
    folder: folder of a language model, or of a pipeline with text_encoder/.
    tokenizer: folder of its tokenizer; None = beside the model.
    dtype: dtype of its computation.
    **text: fields of `TextFeaturesConfig` except the width.

  Raises:
    FileNotFoundError: if a folder does not exist.
    ValueError: if the model is not supported; see
      `pretrained.encoders.text_encoder`.
  """
  options = Options(text_encoder=folder, tokenizer=tokenizer, dtype=dtype)
  path = encoders.component_folder(folder, "text_encoder", options)
  cfg = TextFeaturesConfig(width=1, **text)
  width = open_language(path, cfg.hidden, dtype).cfg.width
  cfg = dataclasses.replace(cfg, width=width)
  encoder, _ = encoders.text_encoder(None, None, cfg, options)
  identity = {"path": str(folder), "dtype": dtype} | _digest(path)
  return FeatureEncoder(encoder, cfg, identity)


def _digest(folder: pathlib.Path) -> dict[str, str]:
  """Identifies weights without reading all of them.

  The checksum covers JSON files, and the size and both ends of safetensors.
  """
  digest = hashlib.sha256()
  for path in sorted(folder.glob("*")):
    if path.suffix == ".json" and not path.name.startswith("tokenizer"):
      digest.update(f"{path.name} ".encode() + path.read_bytes())
    elif path.suffix == ".safetensors":
      size = path.stat().st_size
      digest.update(f"{path.name} {size} ".encode())
      with path.open("rb") as file:
        digest.update(file.read(DIGEST_BYTES))
        file.seek(max(size - DIGEST_BYTES, 0))
        digest.update(file.read(DIGEST_BYTES))
  return {"sha256": digest.hexdigest()}
