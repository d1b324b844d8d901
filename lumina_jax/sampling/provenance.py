"""Metadata of a file: how its sample was made, for people and for programs."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import lumina_jax
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions

# Options that the line for people names, as other programs call them.
NAMED = {
  "Steps": "num_inference_steps",
  "Sampler": "solver",
  "CFG scale": "guidance_scale",
  "Shift": "shift",
}


def public_name(name: str | None) -> str | None:
  """A network's name without the folders of this machine above it."""
  if name is None or not (path := pathlib.Path(name).expanduser()).exists():
    return name
  return pathlib.PurePath(os.path.abspath(path)).name  # Of "." too.


def metadata(
  components: Components,
  options: SamplingOptions,
  model: Mapping[str, Any],
  request: Mapping[str, Any],
  number: int,
  sizes: Mapping[str, Any],
) -> dict[str, str]:
  """Texts to write into a file.

  Args:
    components: that generated the sample.
    options: of the sample, per-sample ones included.
    model: name and components of the network.
    request: prompt, negative prompt, seed and initial image.
    number: among the samples of the prompt.
    sizes: of the sample by axis, in units of the medium.

  Returns:
    "parameters", in lines as other programs write them, and "lumina_jax", JSON.
  """
  chosen = dataclasses.asdict(options) | {"num_inference_steps": options.steps}
  if not request.get("image"):
    del chosen["strength"]
  values = {
    "version": lumina_jax.__version__,
    "medium": components.medium.name,
    **model,
    "dtype": components.network.model.dtype,
    **request,
    "image": public_name(request.get("image")),
    "number": number,
    **sizes,
    **chosen,
  }
  return {
    "parameters": _for_people(values, sizes),
    "lumina_jax": json.dumps(values, ensure_ascii=False),
  }


def _for_people(values: Mapping[str, Any], sizes: Mapping[str, Any]) -> str:
  named = {name: values[key] for name, key in NAMED.items()}
  named |= {
    "Seed": values["seed"],
    "Size": "x".join(str(size) for size in reversed(sizes.values())),
    "Model": pathlib.PurePath(values["model"]).name,
    "Number": values["number"],
    "Version": f"lumina_jax {values['version']}",
  }
  line = ", ".join(
    f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}"
    for name, value in named.items()
  )
  negative = values["negative_prompt"]
  lines = [values["prompt"], f"Negative prompt: {negative}", line]
  return "\n".join(lines if negative else [lines[0], line])
