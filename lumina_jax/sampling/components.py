"""Components: everything that generates samples, as it was loaded."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from lumina_jax.encoders.codec import Codec
from lumina_jax.media import Medium
from lumina_jax.model.network import Network, Params
from lumina_jax.model.offload import Offloadable
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
  """Parts that `pretrained` and workdirs load, and that sampling takes.

  Attributes:
    medium: of the samples.
    network: backbone and text encoder.
    weights: parameters of the network, which may leave the devices.
    options: how to sample unless a call says otherwise.
    sizes: sizes to generate.
    text_encoder: encodes captions as features; None if the network needs none.
    codec: between samples and latents; None if the network generates samples
      as they are.
    mesh: devices to sample on, of one process or of several, which then all
      make the same calls; None = where the parameters are.
    one_at_a_time: whether the text encoder leaves the devices before the
      network enters them, and the other way round.
    scheduler: configuration of a diffusers scheduler.
    files: folders that components come from: "text_encoder", "tokenizer",
      "vae", and "licence" for the whole.
  """

  medium: Medium
  network: Network
  weights: Offloadable
  options: SamplingOptions
  sizes: SizeConfig
  text_encoder: Any = None
  codec: Codec | None = None
  mesh: jax.sharding.Mesh | None = None
  one_at_a_time: bool = False
  scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  files: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    axes, patch = self.medium.axes, self.network.model.patch
    if len(axes) != len(patch):
      names = ", ".join(axis.argument for axis in axes)
      raise ValueError(
        f"medium {self.medium.name!r} has {len(axes)} axes ({names}), but the "
        f"network's patch {patch} has {len(patch)}"
      )
    if len(self.factors) != len(axes):
      raise ValueError(
        f"medium {self.medium.name!r} has {len(axes)} axes, but the codec's "
        f"factors {self.factors} have {len(self.factors)}; give an "
        "Autoencoder frame_axes=1 for videos"
      )
    sizes = self.sizes
    for name, extents in (
      ("default", sizes.default),
      (f"rule {sizes.rule!r}", sizes.extents("")),
    ):
      if len(extents) != len(axes):
        raise ValueError(
          f"sizes.{name} has {len(extents)} extents; medium "
          f"{self.medium.name!r} has {len(axes)} axes"
        )

  @property
  def params(self) -> Params:
    """Parameters of the network; loaded if they are not on the devices."""
    return self.weights.get()

  @property
  def factors(self) -> tuple[int, ...]:
    """Units per latent along each axis; 1 without a codec."""
    if self.codec is None:
      return (1,) * len(self.medium.axes)
    return self.codec.factors

  @property
  def channels(self) -> int:
    """Channels of a sample."""
    if self.codec is None:
      return self.network.model.channels
    return self.codec.channels

  def devices(self) -> contextlib.AbstractContextManager:
    """A context in which programs run on the mesh."""
    return jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()
