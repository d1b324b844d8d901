"""How every command starts, and how it ends on an input error."""

from __future__ import annotations

import glob
import logging
import sys
from collections.abc import Callable

import jax
from absl import app
from absl import logging as absl_logging

# Faults of input; anything else is a fault of ours and keeps its traceback.
EXPECTED = (ValueError, OSError, FloatingPointError)


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a command's main; input errors become one readable message.

  Exit codes: 0 done, 1 an input error, 130 interrupted.
  """

  def guarded(argv):
    absl_logging.use_absl_handler()
    logging.getLogger().setLevel(logging.WARNING)
    warn_of_idle_accelerator()
    try:
      main(argv)
    except EXPECTED as error:
      if absl_logging.level_debug():
        raise
      print(f"\nerror: {error}", file=sys.stderr)
      sys.exit(1)
    except KeyboardInterrupt:
      print(
        "\ninterrupted; the same command goes on at the newest checkpoint",
        file=sys.stderr,
      )
      sys.exit(130)

  app.run(guarded)


def warn_of_idle_accelerator() -> None:
  """Says loudly if the machine has an accelerator that JAX does not use."""
  if jax.default_backend() != "cpu" or jax.config.jax_platforms == "cpu":
    return  # In use, or left idle on purpose.
  for pattern, name, extra in (
    ("/dev/nvidia[0-9]*", "an NVIDIA GPU", "cuda"),
    ("/dev/accel[0-9]*", "a TPU", "tpu"),
    ("/dev/vfio/[0-9]*", "a TPU", "tpu"),
  ):
    if glob.glob(pattern):
      print(
        f"WARNING: this machine has {name}, but the installed JAX runs on the "
        f'CPU only: pip install -e ".[{extra}]"',
        file=sys.stderr,
      )
      return
