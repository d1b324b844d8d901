"""Options of from_pretrained."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lumina_jax.encoders.caption_encoder import CaptionEncoder
from lumina_jax.encoders.codec import Codec
from lumina_jax.files import schema
from lumina_jax.files.suggest import check_name

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Options:
  """How to load a pipeline.

  Attributes:
    dtype: dtype of the weights and of computation, of the network and the
      language model; None = bfloat16, or of an export the one it was trained
      in. Autoencoders are small and always compute in float32.
    mesh: devices to shard weights over, see `parallel.mesh`; None = the first
      device.
    vae: folder or hub name of an autoencoder, or a codec; None = the folder's
      own. False = none; the pipeline then generates latents.
    text_encoder: folder or hub name of a language model, or a CaptionEncoder;
      None = the folder's own. False = none; calls then take prompt_embeds.
    tokenizer: folder or hub name; None = beside the text encoder.
    ema: which weights of the original's folders to load; None prefers EMA
      weights.
    one_at_a_time: whether only the text encoder or the network is on the
      devices at any time: slower, in less memory.
    cache: folder that caches features of captions; None = no cache.
    token: token for gated repositories of the hub.
    revision: revision of the repository; other components use the main one.
  """

  dtype: str | None = None
  mesh: jax.sharding.Mesh | None = None
  vae: Any = None
  text_encoder: Any = None
  tokenizer: str | os.PathLike | None = None
  ema: bool | None = None
  one_at_a_time: bool = False
  cache: str | os.PathLike | None = None
  token: str | None = None
  revision: str | None = None

  def __post_init__(self):
    made = {"vae": (bool, Codec), "text_encoder": (bool, CaptionEncoder)}
    for name in (*made, "tokenizer", "cache"):
      check_folder(getattr(self, name), name, *made.get(name, ()))
      if getattr(self, name) is True:
        raise ValueError(f"{name} = True: pass its folder, or leave it out")
    schema.typed(bool | None, self.ema, "ema")
    schema.typed(bool, self.one_at_a_time, "one_at_a_time")
    if not isinstance(self.mesh, jax.sharding.Mesh | None):
      raise ValueError(f"mesh = {self.mesh!r}: must be a jax.sharding.Mesh")
    if self.dtype is not None and self.dtype not in DTYPES:
      hint = ""
      if "float16" in str(self.dtype):
        hint = "; float16 overflows in these networks"
      raise ValueError(
        f"dtype {self.dtype!r}: use one of {', '.join(DTYPES)}{hint}"
      )


def check_folder(value: Any, name: str, *others: type) -> None:
  """Refuses what is neither None, a path, nor of another type that is allowed.

  Raises:
    ValueError: naming the value.
  """
  if not isinstance(value, (str, os.PathLike, type(None), *others)):
    raise ValueError(f"{name} = {value!r}: must be a folder or a hub name")


# Options of diffusers, and what replaces them here.
DIFFUSERS_OPTIONS = {
  "torch_dtype": "dtype",
  "cache_dir": "the environment variable HF_HOME",
  "use_safetensors": "nothing: safetensors are always read",
  "variant": "dtype",
  "device_map": "mesh",
  "low_cpu_mem_usage": "nothing: weights are always read one at a time",
}


def parse(values: Mapping[str, Any]) -> Options:
  """Checks options by name; `torch_dtype` is an alias of `dtype`.

  Raises:
    ValueError: for an unknown name; suggests what to use instead.
  """
  values = dict(values)
  if "torch_dtype" in values:
    values["dtype"] = values.pop("torch_dtype")
  dtype = values.get("dtype")
  if str(dtype).startswith("torch."):
    values["dtype"] = str(dtype).removeprefix("torch.")
  elif dtype is not None and not isinstance(dtype, str):
    with contextlib.suppress(TypeError):  # `Options` refuses it.
      values["dtype"] = np.dtype(dtype).name
  known = [field.name for field in dataclasses.fields(Options)]
  for name in values:
    if name in DIFFUSERS_OPTIONS:
      raise ValueError(f"{name}: use {DIFFUSERS_OPTIONS[name]}")
    check_name("option", name, known)
  return Options(**values)
