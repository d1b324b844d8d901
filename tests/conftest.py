"""What all tests share: the CPU, how it compiles, small configs."""

import importlib
import importlib.metadata
import os
import pathlib
import signal
import tempfile

# Before JAX is imported; workers and child processes inherit these. The cache
# saves a program that several processes run from being compiled by each.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"  # What a test loads lies in its folder.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  cache = tempfile.TemporaryDirectory(prefix="jax_cache_")  # Ends with us.
  os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name

# Most programs here run for milliseconds and take seconds to compile: LLVM need
# not optimise them, and the older emitters of XLA write less for it to read.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
  flags = os.environ.get("XLA_FLAGS", "").split()
  # One that another XLA does not know would end the process.
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
  os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(flags))

# In the background a shell lets its children ignore Ctrl-C, and theirs too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

QUICKLY = "JAX_DISABLE_MOST_OPTIMIZATIONS"
CHOSEN = os.environ[QUICKLY]
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
  "sampling.rows": 4,
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
  """A pipeline none of whose weights is zero: every prompt shows."""
  import jax
  import numpy as np

  from lumina_jax.pipeline import LuminaPipeline

  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: 0.3 * rng.standard_normal(leaf.shape, dtype=np.float32),
    config.network.shapes(),
  )
  return LuminaPipeline(config.network, params, config.sampling)


def fake_devices(count: int) -> dict[str, str]:
  """The environment of a process that shall see so many CPU devices."""
  flags = os.environ.get("XLA_FLAGS", "")
  flags += f" --xla_force_host_platform_device_count={count}"
  return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}


@pytest.hookimpl(tryfirst=True)  # Before the fixtures.
def pytest_runtest_setup(item):
  """What TPUs would run is compiled with care: its memory is looked at."""
  wanted = "0" if item.get_closest_marker("compiler") else CHOSEN
  if os.environ[QUICKLY] != wanted:
    import jax

    jax.config.update(QUICKLY.lower(), wanted == "1")
    os.environ[QUICKLY] = wanted  # For processes.


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
  return ROOT
