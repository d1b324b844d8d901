"""Folders of diffusers' LuminaPipeline, both ways."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from lumina_jax.interop import destination, licences
from lumina_jax.interop.json_file import read_json
from lumina_jax.interop.pytorch import open_pytorch
from lumina_jax.interop.pytorch_writer import write_diffusers
from lumina_jax.interop.tensor import dtype_of
from lumina_jax.interop.vae import save_vae
from lumina_jax.interop.weights import InMemoryWeights
from lumina_jax.model.network import Network
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.pretrained import backbone, defaults, encoders
from lumina_jax.pretrained.options import Options
from lumina_jax.sampling.presets import SCHEDULER_CLASS

INDEX = "model_index.json"
PIPELINES = ("LuminaPipeline", "LuminaText2ImgPipeline")
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder is a pipeline of diffusers."""
  return (folder / INDEX).exists()


def load(folder: pathlib.Path, options: Options) -> LuminaPipeline:
  """Loads a pipeline.

  Raises:
    FileNotFoundError: naming every part that is missing.
    ValueError: if it is another pipeline, or parts do not fit.
  """
  found = read_json(folder / INDEX).get("_class_name")
  if found not in PIPELINES:
    raise ValueError(
      f"{folder}: a {found}; of diffusers' pipelines we load {PIPELINES[0]} "
      f"(formerly {PIPELINES[1]})"
    )
  _check_parts(folder, options)
  weights = open_pytorch(folder / "transformer", ema=options.ema)
  model = backbone.model(weights, options)
  text = defaults.text(model)
  network = Network(model, text)
  encoder, files = encoders.text_encoder(
    folder / "text_encoder", folder / "tokenizer", text, options
  )
  vae, vae_files = encoders.vae(folder / "vae", model, options)
  values = read_json(folder / "transformer" / "config.json")
  side = int(values.get("sample_size") or defaults.TRAINED // 8)
  return LuminaPipeline(
    network,
    backbone.part(weights, network, options),
    defaults.sampling(model, side),
    text_encoder=encoder,
    vae=vae,
    mesh=options.mesh,
    one_at_a_time=options.one_at_a_time,
    scheduler=_scheduler(folder),
    files=files | vae_files | {"licence": folder},
  )


def _check_parts(folder: pathlib.Path, options: Options) -> None:
  needed = {"transformer"}
  needed |= {"vae"} if options.vae is None else set()
  if options.text_encoder is None:
    needed |= {"text_encoder"}
    needed |= {"tokenizer"} if options.tokenizer is None else set()
  missing = [name for name in PARTS if name in needed - _there(folder)]
  if missing:
    raise FileNotFoundError(
      f"{folder} lacks {', '.join(f'{name}/' for name in missing)}, which a "
      "pipeline of diffusers has; fetch the whole folder, or name a part that "
      "lies elsewhere, vae= and text_encoder= (lumina infer --ckpt_vae=, "
      "--ckpt_lm=)"
    )


def _there(folder: pathlib.Path) -> set[str]:
  return {entry.name for entry in folder.iterdir() if entry.is_dir()}


def _scheduler(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / "scheduler" / "scheduler_config.json"
  return read_json(path) if path.exists() else {}


def save(
  pipe: LuminaPipeline, folder: pathlib.Path, dtype: str, overwrite: bool
) -> None:
  """Writes what diffusers' `LuminaPipeline.from_pretrained` loads.

  Whole or not at all; the language model and its tokenizer are copies of the
  files that they came from.

  Raises:
    ValueError: if a part is missing, diffusers has no class for the network, or
      its pipeline would not sample what the network was trained for.
  """
  objective = pipe.network.objective
  if not objective.published:
    raise ValueError(
      f"this network was trained with {objective.summary}, and diffusers' "
      f"{PIPELINES[0]} follows a velocity on the path 'linear'; save it with "
      "layout='lumina_jax'"
    )
  for name, there in (
    ("vae", pipe.vae),
    ("text_encoder", pipe.files.get("text_encoder")),
    ("tokenizer", pipe.files.get("tokenizer")),
  ):
    if there is None:
      raise ValueError(
        f"a diffusers folder has a {name}, and this pipeline has none that "
        f"came from files; load it with {name}= (a folder or a hub name)"
      )
  kind = dtype_of(dtype)
  model, params = pipe.network.model, pipe.params["backbone"]
  weights = InMemoryWeights(model, params, "image")
  nbytes = sum(x.size for x in backbone.flat(pipe.params).values())
  nbytes = nbytes * kind.itemsize + encoders.nbytes(pipe)
  with destination.staged(
    folder, nbytes, overwrite, destination.PIPELINE_FILES
  ) as new:
    new.mkdir()
    write_diffusers(weights, new / "transformer", kind, overwrite=False)
    _set_side(new / "transformer" / "config.json", pipe)
    save_vae(pipe.vae, new / "vae")
    licences.copy(pipe.files.get("vae"), new / "vae")
    for part in ("text_encoder", "tokenizer"):
      encoders.copy(pipe.files[part], new / part, part)
    (new / "scheduler").mkdir()
    _json(
      new / "scheduler" / "scheduler_config.json",
      {
        "_class_name": SCHEDULER_CLASS,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        **pipe.scheduler,
      },
    )
    licences.copy(pipe.files.get("licence"), new)
    _json(new / INDEX, _index(new))


def _set_side(path: pathlib.Path, pipe: LuminaPipeline) -> None:
  values = read_json(path)
  beyond = pipe.sampling.beyond
  side = beyond.side if beyond else 0  # 0: not one square for all.
  values["sample_size"] = side or pipe.sampling.height
  _json(path, values)


def _index(folder: pathlib.Path) -> dict[str, Any]:
  language = read_json(folder / "text_encoder" / "config.json")
  words = read_json(folder / "tokenizer" / "tokenizer_config.json")
  # A causal model's files serve as the model's within it, which has no head.
  reader, *_ = language.get("architectures") or ["GemmaModel"]
  return {
    "_class_name": PIPELINES[0],
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", SCHEDULER_CLASS],
    "text_encoder": ["transformers", reader.replace("ForCausalLM", "Model")],
    "tokenizer": [
      "transformers",
      words.get("tokenizer_class", "GemmaTokenizerFast"),
    ],
    "transformer": ["diffusers", "LuminaNextDiT2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
  }


def _json(path: pathlib.Path, values: Any) -> None:
  path.write_text(json.dumps(values, indent=2) + "\n")
