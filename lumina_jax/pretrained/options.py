"""What a caller of from_pretrained may choose."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Options:
  """How to load a pipeline.

  Attributes:
    dtype: of the weights of the network and the language model, and what they
      compute in; None = bfloat16, or for our export what it was trained in.
      The autoencoder is small and sees every pixel: it stays float32.
    mesh: devices to shard them over by the rules of `parallel.mesh`; None = the
      first device.
    vae: folder or hub name of an autoencoder, or one that is loaded; None =
      the folder's own. False = none; the pipeline then draws latents.
    text_encoder: folder or hub name of a language model, or a CaptionEncoder;
      None = the folder's own. False = none; calls then bring prompt_embeds.
    tokenizer: folder or hub name; None = beside the text encoder.
    ema: of the original's folders, averaged weights or raw ones; None =
      averaged if there are both.
    one_at_a_time: whether the text encoder leaves the devices before the
      network enters them, and the other way round: slower, in less memory.
    cache: folder that features of captions are kept in; None = in none.
    token: for gated repositories of the hub.
    revision: of the repository; of those that parts are named by, the main one.
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
    for name in ("vae", "text_encoder"):
      if getattr(self, name) is True:
        raise ValueError(f"{name} = True: name its folder, or leave it out")
    if self.dtype is not None and self.dtype not in DTYPES:
      hint = ""
      if "float16" in str(self.dtype):
        hint = ". float16 overflows in these networks"
      raise ValueError(
        f"dtype {self.dtype!r}: use one of {', '.join(DTYPES)}{hint}"
      )


# What diffusers calls by another name, or has and we need not.
ELSEWHERE = {
  "torch_dtype": "dtype",
  "cache_dir": "the environment variable HF_HOME",
  "use_safetensors": "nothing: safetensors are always read",
  "variant": "dtype",
  "device_map": "mesh",
  "low_cpu_mem_usage": "nothing: weights are always read one at a time",
}


def parse(values: Mapping[str, Any]) -> Options:
  """Options by name; `torch_dtype` is taken for `dtype`.

  Raises:
    ValueError: for a name that is unknown, with what to use in its place.
  """
  values = dict(values)
  if "torch_dtype" in values:
    values["dtype"] = values.pop("torch_dtype")
  dtype = values.get("dtype")
  if str(dtype).startswith("torch."):
    values["dtype"] = str(dtype).removeprefix("torch.")
  elif dtype is not None and not isinstance(dtype, str):
    values["dtype"] = np.dtype(dtype).name
  known = [field.name for field in dataclasses.fields(Options)]
  for name in values:
    if name in ELSEWHERE:
      raise ValueError(f"{name}: here use {ELSEWHERE[name]}")
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f"did you mean {near[0]!r}? " if near else ""
      raise ValueError(
        f"from_pretrained has no {name!r}; {hint}there are: {', '.join(known)}"
      )
  return Options(**values)
