"""How every command starts, and how it ends on an input error."""

from __future__ import annotations

import faulthandler
import glob
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags

from lumina_jax.parallel import processes

# What bad input raises. The message is shown alone; LUMINA_TRACEBACK=1 shows
# where it came from, should it be a fault of ours after all.
EXPECTED = (ValueError, OSError, FloatingPointError)
TRACEBACK = "LUMINA_TRACEBACK"
ORBAX_THREAD = "_SignalingThread"
ORBAX_SAVE = "in background save thread"


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a command's main; input errors become one readable message.

  Several processes join here, before anything else, and leave together.

  Exit codes: 0 done, 1 an input error or another process that is gone, 130
  interrupted.
  """
  define_flags()

  def guarded(argv):
    # Our own warnings, plainly; orbax reports every step of its work to absl.
    logging.basicConfig(
      format="%(levelname)s: %(message)s", level=logging.WARNING, force=True
    )
    logging.getLogger("absl").setLevel(logging.ERROR)
    hush_threads_of_orbax()
    keep_interrupts()
    join()
    start_jax()
    try:
      main(argv)
    except EXPECTED as error:
      fail(error)
    except KeyboardInterrupt:
      print("\ninterrupted", file=sys.stderr, flush=True)
      sys.stdout.flush()
      os._exit(130)  # XLA may be compiling: taking it down crashes.
    except Exception as error:
      if processes.count() == 1:
        raise
      fail_among_others(error)
    processes.finish()

  app.run(guarded, flags_parser=parse)


def define_flags() -> None:
  """How processes find each other where nothing around them says it."""
  flags.DEFINE_string(
    "coordinator", "", "host:port of process 0, of several processes."
  )
  flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
  flags.DEFINE_integer("process_id", -1, "Number of this one, from 0.")


def join() -> None:
  """Finds the other processes, if there are any."""
  args = flags.FLAGS
  try:
    processes.initialize(args.coordinator, args.num_processes, args.process_id)
    if jax.distributed.is_initialized():
      # Where one dies the runtime aborts the others and says which it was; the
      # stacks of all threads would bury that.
      faulthandler.disable()
  except (ValueError, OSError, RuntimeError) as error:
    say_error(error)
    sys.exit(1)  # There is nobody to leave with.


def fail_among_others(error: Exception) -> NoReturn:
  """Ends a process that does not know whether the others are still there.

  What a collective raises when one of them has died is of many kinds.
  """
  traceback.print_exc()
  first = str(error).strip().partition("\n")[0][:300]
  print(
    f"\nerror: process {jax.process_index()} of {processes.count()} cannot go "
    f"on ({first}). If another one has failed, its own message says why. Start "
    "all of them again: the same command goes on at the newest checkpoint",
    file=sys.stderr,
    flush=True,
  )
  processes.finish(1)
  os._exit(1)


def hush_threads_of_orbax() -> None:
  """Leaves out what they print when a save fails: `Checkpoints` says it all."""
  logging.getLogger("absl").addFilter(
    lambda entry: (
      not any(
        words in entry.getMessage() for words in (ORBAX_THREAD, ORBAX_SAVE)
      )
    )
  )
  usual = threading.excepthook

  def hook(raised):
    if type(raised.thread).__name__ != ORBAX_THREAD:
      usual(raised)

  threading.excepthook = hook


def keep_interrupts() -> None:
  """Sends an interrupt again that Python has dropped.

  It does so where one arrives in a finaliser or, as JAX has one, in a callback
  of the garbage collector: an exception has nowhere to go from there.
  """
  usual = sys.unraisablehook

  def hook(dropped):
    if dropped.exc_type is not KeyboardInterrupt:
      usual(dropped)
      return
    # Not from here, where it would be dropped like the first.
    again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()

  sys.unraisablehook = hook


def start_jax() -> None:
  """Starts the backend, or says which extra the wanted one needs."""
  try:
    jax.default_backend()
  except (RuntimeError, AssertionError) as error:
    wanted = jax.config.jax_platforms
    extra = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}.get(wanted, "...")
    fail(
      RuntimeError(
        f"JAX cannot start on {wanted!r} ({error}); install what it needs "
        f'(pip install -e ".[{extra}]"), or set JAX_PLATFORMS=cpu'
      )
    )
  warn_of_idle_accelerator()


def parse(argv: list[str]) -> list[str]:
  """Parses flags; config_flags raises KeyErrors and more on a mistyped one."""
  try:
    return flags.FLAGS(argv)
  except (*EXPECTED, flags.Error, AttributeError, KeyError) as error:
    fail(error)


def fail(error: Exception) -> NoReturn:
  """Says what is wrong and ends the program."""
  if os.environ.get(TRACEBACK):
    raise error
  say_error(error)
  processes.finish(1)
  sys.exit(1)


def say_error(error: Exception) -> None:
  """Prints an error as a message, without where it came from."""
  while len(error.args) == 1 and isinstance(error.args[0], Exception):
    error = error.args[0]
  text = str(error.args[0]) if len(error.args) == 1 else str(error)
  if isinstance(error, (KeyError, AttributeError)):  # config_flags raises them.
    text = f"no such key in the config: {text}"
  if "Traceback" in text:  # config_flags quotes one; its last line says it.
    text = text.strip().splitlines()[-1].partition("Error: ")[2]
  print(f"\nerror: {text}", file=sys.stderr, flush=True)


def warn_of_idle_accelerator() -> None:
  """Says loudly if the machine has an accelerator that JAX does not use."""
  if jax.default_backend() != "cpu" or jax.config.jax_platforms == "cpu":
    return  # In use, or left idle on purpose.
  for pattern, name, extra in (
    ("/dev/nvidia[0-9]*", "an NVIDIA GPU", "cuda"),
    ("/dev/accel[0-9]*", "a TPU", "tpu"),
    ("/dev/vfio/[0-9]*", "a device that looks like a TPU", "tpu"),
  ):
    if glob.glob(pattern):
      print(
        f"WARNING: this machine has {name}, but the installed JAX runs on the "
        f'CPU only: pip install -e ".[{extra}]"',
        file=sys.stderr,
      )
      return
