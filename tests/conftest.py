"""What all tests share: the CPU, one compilation cache, small configs."""

import os
import pathlib
import tempfile

# Before JAX is imported; workers and child processes inherit these. The cache
# saves a program that several processes run from being compiled by each.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  cache = tempfile.TemporaryDirectory(prefix="jax_cache_")  # Ends with us.
  os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name

import pytest

ROOT = pathlib.Path(__file__).parent.parent

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


def small_flags(**changes) -> list[str]:
  """Command-line flags that shrink configs/digits.py to `SMALL`."""
  values = SMALL | {k.replace("__", "."): v for k, v in changes.items()}
  return [f"--config.{key}={value}" for key, value in values.items()]


def small_config(variant: str = "next", **changes):
  """`RunConfig` of a small run, e.g. `small_config(training__steps=2)`."""
  import configs.digits
  from lumina_jax import config as configs_

  config = configs.digits.get_config(variant)
  values = SMALL | {k.replace("__", "."): v for k, v in changes.items()}
  with config.unlocked():
    for key, value in values.items():
      section, name = key.split(".")
      config[section][name] = value
  return configs_.parse(config)


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
  return ROOT
