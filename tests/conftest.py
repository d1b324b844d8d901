"""What all tests share: the CPU, how it compiles, small configs."""

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
  return pathlib.Path(__file__).parent.parent
