"""LuminaPipeline: prompts in, samples of a medium out.

pipe = LuminaPipeline.from_pretrained("Lumina-Next-SFT-diffusers")
out = pipe("a snowman", height=1024, width=1024, seed=0)
out.images[0].save("snowman.png")
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lumina_jax import pretrained
from lumina_jax.encoders.codec import Codec
from lumina_jax.model.network import Network, Params
from lumina_jax.model.offload import Offloadable
from lumina_jax.model.velocity import Transformer
from lumina_jax.sampling import generate as generation
from lumina_jax.sampling.call import documented
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.output import Output


class LuminaPipeline:
  """Components that generate samples when called.

  Attributes:
    components: network, text encoder, codec, mesh, sizes.
    options: how to sample unless a call says otherwise.
  """

  def __init__(self, components: Components):
    """Takes components, such as `pretrained.load` returns."""
    self.components = components

  @classmethod
  def from_workdir(
    cls, workdir: str | os.PathLike, mesh: jax.sharding.Mesh | None = None
  ) -> LuminaPipeline:
    """Loads the EMA weights of a run's newest readable checkpoint.

    Args:
      workdir: folder of the run.
      mesh: devices to load onto; None = all devices of all processes, which
        share the samples of a call.

    Raises:
      FileNotFoundError: if the folder is no workdir or has no checkpoint.
    """
    from lumina_jax.runs import workdir as workdirs  # Imports orbax: slow.

    return cls(workdirs.load(workdir, mesh))

  @classmethod
  def from_pretrained(
    cls, path: str | os.PathLike | None = None, **options: Any
  ) -> LuminaPipeline:
    """Loads a folder, or a repository of the Hugging Face hub.

    Args:
      path: a diffusers folder (with model_index.json), a folder of the original
        code, our own export, or "owner/name" of a repository; None = the
        digits that ship with the package.
      **options: dtype, mesh, vae, text_encoder, tokenizer, ema, one_at_a_time,
        cache, token, revision; see `pretrained.options.Options`.

    Raises:
      FileNotFoundError: if something is missing; names the way out.
      ValueError: if a file is broken, or components do not fit each other.
    """
    return cls(pretrained.load(path, **options))

  def save_pretrained(
    self,
    path: str | os.PathLike,
    layout: str = "lumina_jax",
    *,
    dtype: str = "bfloat16",
    overwrite: bool = False,
  ) -> None:
    """Saves everything that `from_pretrained` needs.

    Args:
      path: of the folder.
      layout: "lumina_jax", or "diffusers" for its LuminaPipeline.
      dtype: of the network's weights.
      overwrite: whether to replace a pipeline that is there already.

    Raises:
      ValueError: for a network that the layout cannot hold.
      FileExistsError: if something else is there.
    """
    self.components = pretrained.save(
      self.components, path, layout, dtype, overwrite
    )

  @documented
  def __call__(
    self, prompt: str | Sequence[str] | None = None, **arguments: Any
  ) -> Output | tuple[list[Any]]:
    """Generates samples of prompts.

    The same seed, prompt and number within a prompt's samples give the same
    sample, whatever else is in the call; give `seed` one value per prompt to
    vary equal prompts.

    Returns:
      `Output` with samples in the order of the prompts.

    Raises:
      TypeError: for an unknown argument; suggests the nearest.
      ValueError: naming an argument that does not fit.
      FloatingPointError: if a sample holds values that are not finite, or an
        adaptive solver gave up.
    """
    return generation.generate(
      self.components, prompt, pipeline=self, **arguments
    )

  def check(self, prompt: str | Sequence[str], **arguments: Any) -> None:
    """Checks sizes and prompts of a call; generates nothing.

    Raises:
      TypeError, ValueError: as a call.
    """
    generation.check_call(self.components, prompt, **arguments)

  def encode_prompt(
    self,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = "",
    *,
    compatibility: str | None = None,
    clean_caption: bool | None = None,
    max_sequence_length: int | None = None,
  ) -> tuple[np.ndarray, ...]:
    """Encodes prompts as features, to pass to calls.

    Args:
      prompt: one or several.
      negative_prompt: one, or one for each prompt.
      compatibility: as in a call.
      clean_caption: as in a call.
      max_sequence_length: as in a call.

    Returns:
      prompt_embeds `f32[N, S, E]`, their mask `bool[N, S]`, and both of the
      negative prompts, of the same shapes.
    """
    return generation.encode_prompts(
      self.components,
      prompt,
      negative_prompt,
      compatibility=compatibility,
      clean_caption=clean_caption,
      max_sequence_length=max_sequence_length,
    )

  @property
  def options(self) -> SamplingOptions:
    return self.components.options

  @options.setter
  def options(self, options: SamplingOptions) -> None:
    self.components = dataclasses.replace(self.components, options=options)

  @property
  def network(self) -> Network:
    return self.components.network

  @property
  def weights(self) -> Offloadable:
    return self.components.weights

  @property
  def params(self) -> Params:
    """Parameters of the network; loaded if they are not on the devices."""
    return self.components.params

  @property
  def text_encoder(self) -> Any:
    return self.components.text_encoder

  @property
  def tokenizer(self) -> Any:
    return getattr(self.text_encoder, "tokenizer", None)

  @property
  def vae(self) -> Codec | None:
    """The codec, by its name in diffusers."""
    return self.components.codec

  @property
  def scheduler(self) -> dict[str, Any]:
    """Configuration of the diffusers scheduler."""
    return dict(self.components.scheduler)

  @property
  def transformer(self) -> Transformer:
    """The backbone, to call.

    Raises:
      ValueError: if it does not predict a velocity.
    """
    prediction = self.network.objective.prediction
    if prediction != "velocity":
      raise ValueError(
        f"this network predicts {prediction}, not velocity; call "
        "pipe.network.velocity, which converts it"
      )
    return Transformer(self.network.model, self.params["backbone"])

  @property
  def dtype(self) -> str:
    """The dtype that the network computes in."""
    return self.network.model.dtype

  def __repr__(self) -> str:
    model = self.network.model
    return (
      f"LuminaPipeline({self.components.medium.name}, width {model.width}, "
      f"depth {model.depth}, {self.dtype})"
    )
