"""Small configs and pipelines that tests share."""

import importlib
import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]

# A run of the digits that takes seconds.
SMALL = {
  "model.width": 32,
  "model.depth": 2,
  "model.heads": 2,
  "model.kv_heads": 2,
  "model.cond_width": 32,
  "model.text_width": 32,
  "model.dtype": "float32",
  "text_encoder.width": 32,
  "data.records_per_canvas": 16,
  "optimizer.warmup_steps": 2,
  # Runs of different lengths compile the same program.
  "optimizer.decay": "constant",
  "training.steps": 6,
  "training.batch_rows": 8,
  "training.log_every": 1,
  "training.checkpoint_every": 2,
  "training.keep_checkpoints": 3,
  "training.sample_every": 6,
  "training.samples_per_prompt": 1,
  "sampling.num_inference_steps": 2,
  "sampling.solver": "euler",
}

# A run of the tiny variant of another config that takes seconds.
TINY = {
  "data.records_per_size": 16,
  "training.steps": 4,
  "training.batch_rows": 4,
  "training.log_every": 1,
  "training.checkpoint_every": 2,
  "training.sample_every": 4,
  "training.samples_per_prompt": 1,
  "sampling.num_inference_steps": 1,
  "sampling.solver": "euler",
  "sizes.rows": 4,
}


def small_flags(**changes) -> list[str]:
  """Command-line flags that shrink configs/digits.py to `SMALL`."""
  return _flags(_with(SMALL, changes))


def small_config(variant: str = "next", **changes):
  """`RunConfig` of a small run, e.g. `small_config(training__steps=2)`."""
  return _config("digits", variant, _with(SMALL, changes))


def tiny_flags(**changes) -> list[str]:
  """Command-line flags that shrink a tiny variant to `TINY`."""
  return _flags(_with(TINY, changes))


def tiny_config(family: str, **changes):
  """`RunConfig` of configs/<family>.py:tiny, shrunk to `TINY`."""
  return _config(family, "tiny", _with(TINY, changes))


def _with(values: dict, changes: dict) -> dict:
  return values | {k.replace("__", "."): v for k, v in changes.items()}


def _flags(values: dict) -> list[str]:
  return [f"--config.{key}={value}" for key, value in values.items()]


def _config(family: str, variant: str, values: dict):
  from lumina_jax.training import run_config

  config = importlib.import_module(f"configs.{family}").get_config(variant)
  with config.unlocked():
    for key, value in values.items():
      section, name = key.split(".")
      config[section][name] = value
  return run_config.parse(config)


def randomised(config):
  """A pipeline with random weights, none of them zero: every prompt matters."""
  import jax
  import numpy as np

  from lumina_jax.model.offload import Offloadable
  from lumina_jax.pipeline import LuminaPipeline

  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: 0.3 * rng.standard_normal(leaf.shape, dtype=np.float32),
    config.network.shapes(),
  )
  return LuminaPipeline(config.components(Offloadable.pinned(params)))


def fake_devices(count: int) -> dict[str, str]:
  """The environment of a process that shall see so many CPU devices."""
  flags = os.environ.get("XLA_FLAGS", "")
  flags += f" --xla_force_host_platform_device_count={count}"
  return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
