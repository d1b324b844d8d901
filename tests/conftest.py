"""What all tests share: the CPU, how it compiles, and a compilation cache."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import signal

# Before JAX is imported; workers and child processes inherit these.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"  # Tests load from their own folders.

# Most programs here run for milliseconds and take seconds to compile: LLVM need
# not optimise them, and the older emitters of XLA give it less to read.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# A flag that another XLA does not know would end the process.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  flags = os.environ.get("XLA_FLAGS", "").split()
  if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    flags.append("--xla_cpu_use_fusion_emitters=false")
  # Fake devices are threads that wait for each other, long on a busy machine.
  flags.append("--xla_cpu_collective_call_terminate_timeout_seconds=120")
  os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys(flags))


def cache_folder() -> pathlib.Path:
  """A folder of compiled programs for these versions, flags and this CPU."""
  cpu = pathlib.Path("/proc/cpuinfo")
  lines = cpu.read_text().splitlines() if cpu.exists() else []
  facts = [
    platform.python_version(),
    platform.machine(),
    *(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")),
    os.environ.get("XLA_FLAGS", ""),
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"],
    *sorted({line for line in lines if line.startswith(("flags", "model"))}),
  ]
  digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
  home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
  return pathlib.Path(home).expanduser() / "lumina_jax" / "tests" / digest


# A program is compiled once on a machine, by the first test that needs it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache_folder())
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 << 30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# In the background a shell lets its children ignore Ctrl-C, and theirs too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

import shutil  # noqa: E402

import pytest  # noqa: E402
from support import runs  # noqa: E402

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


@pytest.fixture(scope="session")
def diffusers_folder(tmp_path_factory) -> pathlib.Path:
  """A tiny random text-to-image pipeline as diffusers stores it; read only."""
  from support import tiny_pipeline

  return runs.once_per_session(
    tmp_path_factory.getbasetemp(),
    "diffusers_folder",
    tiny_pipeline.write_diffusers,
  )


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> runs.Run:
  """A short run of the digits through the command; tests must not change it."""

  def make(folder):
    printed = runs.run("train", *runs.train_words(folder / "digits"))
    (folder / "printed.txt").write_text(printed)

  folder = runs.once_per_session(
    tmp_path_factory.getbasetemp(), "trained_run", make
  )
  return runs.Run(folder / "digits", (folder / "printed.txt").read_text())


@pytest.fixture
def run_copy(trained_run, tmp_path) -> pathlib.Path:
  """A copy of that run, to change."""
  return pathlib.Path(shutil.copytree(trained_run.workdir, tmp_path / "copy"))


@pytest.fixture(scope="session")
def shared_programs():
  """Runs in this process share their compiled programs."""
  with pytest.MonkeyPatch.context() as patch:
    runs.share_programs(patch)
    yield
