"""Folders of diffusers' LuminaPipeline, both ways."""

import pathlib
from typing import Any

from lumina_jax.files.json_file import read_json, write_json
from lumina_jax.interop.pytorch import open_pytorch
from lumina_jax.interop.pytorch_writer import write_diffusers
from lumina_jax.interop.tensor import dtype_of
from lumina_jax.interop.weights import in_memory
from lumina_jax.media import IMAGE
from lumina_jax.model.network import Network
from lumina_jax.pretrained import backbone, defaults, encoders
from lumina_jax.pretrained.options import Options
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.presets import SCHEDULER_CLASS

INDEX = "model_index.json"
PIPELINES = ("LuminaPipeline", "LuminaText2ImgPipeline")
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def matches(folder: pathlib.Path) -> bool:
  """Whether a folder is a diffusers pipeline."""
  return (folder / INDEX).exists()


def load(folder: pathlib.Path, options: Options) -> Components:
  """Loads a pipeline.

  Raises:
    FileNotFoundError: naming every component that is missing.
    ValueError: if it is another pipeline, or components do not fit.
  """
  name = read_json(folder / INDEX).get("_class_name")
  if name not in PIPELINES:
    raise ValueError(
      f"{folder} is a {name}; of the diffusers pipelines, {PIPELINES[0]} "
      f"(formerly {PIPELINES[1]}) is supported"
    )
  _check_complete(folder, options)
  weights = open_pytorch(folder / "transformer", ema=options.ema)
  model = backbone.model(weights, options)
  text = defaults.text_config(model)
  network = Network(model, text)
  encoder, files = encoders.text_encoder(
    folder / "text_encoder", folder / "tokenizer", text, options
  )
  vae, vae_files = encoders.codec(folder / "vae", IMAGE, model, options)
  values = read_json(folder / "transformer" / "config.json")
  side = int(values.get("sample_size") or defaults.TRAINED // 8)
  return Components(
    IMAGE,
    network,
    backbone.from_weights(weights, network, options),
    defaults.options(model),
    defaults.sizes(model, side),
    text_encoder=encoder,
    codec=vae,
    mesh=options.mesh,
    one_at_a_time=options.one_at_a_time,
    scheduler=_scheduler(folder),
    files=files | vae_files | {"licence": folder},
  )


def _check_complete(folder: pathlib.Path, options: Options) -> None:
  needed = {"transformer"}
  needed |= {"vae"} if options.vae is None else set()
  if options.text_encoder is None:
    needed |= {"text_encoder"}
    needed |= {"tokenizer"} if options.tokenizer is None else set()
  folders = {entry.name for entry in folder.iterdir() if entry.is_dir()}
  missing = [name for name in COMPONENTS if name in needed - folders]
  if missing:
    raise FileNotFoundError(
      f"{folder} lacks {', '.join(f'{name}/' for name in missing)}; fetch the "
      "whole folder, or name a component that lies elsewhere, vae= and "
      "text_encoder= (lumina infer --vae=, --text_encoder=)"
    )


def _scheduler(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / "scheduler" / "scheduler_config.json"
  return read_json(path) if path.exists() else {}


def save(
  components: Components, folder: pathlib.Path, dtype: str, overwrite: bool
) -> None:
  """Writes what diffusers' `LuminaPipeline.from_pretrained` loads, atomically.

  The language model and its tokenizer are copies of the files that they were
  loaded from.

  Raises:
    ValueError: if a component is missing, diffusers has no class for the
      network, or its pipeline samples another objective.
  """
  objective = components.network.objective
  if not objective.published:
    raise ValueError(
      f"this network was trained with {objective.summary}, but diffusers' "
      f"{PIPELINES[0]} samples a velocity on the path 'linear'; save it with "
      "layout='lumina_jax'"
    )
  files = components.files
  for name, source in (
    ("vae", components.codec),
    ("text_encoder", files.get("text_encoder")),
    ("tokenizer", files.get("tokenizer")),
  ):
    if source is None:
      raise ValueError(
        f"a diffusers folder needs a {name}, and this pipeline has none from "
        f"files; load it with {name}= (a folder or a hub name)"
      )
  model, medium = components.network.model, components.medium.name
  weights = in_memory(model, components.params["backbone"], medium)
  with encoders.staged(components, folder, dtype, overwrite) as new:
    kind, transformer = dtype_of(dtype), new / "transformer"
    write_diffusers(weights, transformer, kind, overwrite=False)
    _set_side(transformer / "config.json", components)
    (new / "scheduler").mkdir()
    write_json(
      new / "scheduler" / "scheduler_config.json",
      {
        "_class_name": SCHEDULER_CLASS,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        **components.scheduler,
      },
    )
    write_json(new / INDEX, _index(new))


def _set_side(path: pathlib.Path, components: Components) -> None:
  values, sizes = read_json(path), components.sizes
  trained = sizes.trained
  values["sample_size"] = trained.side if trained else sizes.default[0]
  write_json(path, values)


def _index(folder: pathlib.Path) -> dict[str, Any]:
  language = read_json(folder / "text_encoder" / "config.json")
  words = read_json(folder / "tokenizer" / "tokenizer_config.json")
  # The files of a causal model also load as the model without its head.
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
