"""What a picture says of how it was made, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lumina_jax
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling import source_image

if TYPE_CHECKING:
  from lumina_jax.commands.wishes import Wish

OF_SOLVER = ("rtol", "atol", "diffusion", "last_step")


def public(name: str | None) -> str | None:
  """A network's name without the folders of this machine above it."""
  local = name is not None and pathlib.Path(name).expanduser().exists()
  return pathlib.PurePath(name).name if local else name


def texts(
  pipe: LuminaPipeline,
  model: Mapping[str, Any],
  wish: Wish,
  number: int,
  size: tuple[int, int],
) -> dict[str, str]:
  """What a PNG says of how it was made, for people and for programs.

  Args:
    pipe: that drew it.
    model: name and parts of the network.
    wish: what was asked.
    number: among the pictures of this wish.
    size: width and height of the picture; of a video, of all frames in a row.
  """
  how = pipe.sampling
  video = len(pipe.network.model.patch) == 3
  size = (size[0] // how.frames, size[1]) if video else size
  scale = wish.guidance_scale
  scale = how.guidance_scale if scale is None else scale
  name = pathlib.PurePath(model["model"]).name
  line = (
    f"Steps: {how.num_inference_steps}, Sampler: {how.solver}, CFG scale: "
    f"{scale:g}, Seed: {wish.seed}, Size: {size[0]}x{size[1]}, Model: {name}, "
    f"Shift: {how.shift:g}, Number: {number}, Version: lumina_jax "
    f"{lumina_jax.__version__}"
  )
  negative = wish.negative_prompt
  minus = [f"Negative prompt: {negative}"] if negative else []
  values = {
    "version": lumina_jax.__version__,
    **model,
    "dtype": pipe.dtype,
    **dataclasses.asdict(wish),
    "image": public(wish.image),
    "strength": wish.image and source_image.strength(wish.strength, wish.image),
    "guidance_scale": scale,
    "number": number,
    "width": size[0],
    "height": size[1],
    **({"frames": how.frames} if video else {}),
    "solver": how.solver,
    **{k: getattr(how, k) for k in OF_SOLVER},
    "num_inference_steps": how.num_inference_steps,
    "shift": how.shift,
    "schedule": wish.schedule or how.schedule,
    "shift_tokens": how.shift_tokens,
    "guidance_interval": how.guidance_interval,
    "guidance_renorm": how.guidance_renorm,
    "guidance_channels": how.guidance_channels,
    "beyond": how.beyond and dataclasses.asdict(how.beyond),
  }
  return {
    "parameters": "\n".join([wish.prompt, *minus, line]),
    "lumina_jax": json.dumps(values, ensure_ascii=False),
  }
