"""Starts a command, and turns input errors into readable messages."""

import faulthandler
import glob
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags

from lumina_jax.parallel import processes

# Errors that bad input raises: the command prints the message alone.
# LUMINA_TRACEBACK=1 also shows the traceback.
EXPECTED = (ValueError, OSError, FloatingPointError)
TRACEBACK = "LUMINA_TRACEBACK"
ORBAX_THREAD = "_SignalingThread"
ORBAX_MESSAGE = re.compile(f"{ORBAX_THREAD}|in background save thread")


def run(main: Callable[[list[str]], None], together: bool = True) -> None:
  """Runs the main function of a command.

  Exit codes: 0 = done, 1 = an input error, or another process is gone, 130 =
  interrupted.

  Args:
    main: takes the words that are no flags.
    together: whether several processes join first, and leave together.
  """
  if together:
    define_flags()

  def guarded(argv):
    # Orbax reports every step of its work to absl.
    logging.basicConfig(
      format="%(levelname)s: %(message)s", level=logging.WARNING, force=True
    )
    logging.getLogger("absl").setLevel(logging.ERROR)
    silence_orbax_threads()
    resend_interrupts()
    # Names of files may hold bytes that are not text.
    sys.stdout.reconfigure(errors="backslashreplace")
    if together:
      join()
    start_jax()
    try:
      main(argv)
    except EXPECTED as error:
      fail(error)
    except KeyboardInterrupt:
      print("\ninterrupted", file=sys.stderr, flush=True)
      sys.stdout.flush()
      os._exit(130)  # A regular exit crashes while XLA compiles.
    except Exception as error:
      if processes.count() == 1:
        raise
      fail_among_others(error)
    processes.finish()

  app.run(guarded, flags_parser=parse)


def define_flags() -> None:
  """Flags by which processes find each other without a cluster."""
  flags.DEFINE_string(
    "coordinator", "", "host:port of process 0, of several processes."
  )
  flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
  flags.DEFINE_integer("process_id", -1, "Number of this one, from 0.")


def join() -> None:
  """Connects to the other processes, if there are any."""
  args = flags.FLAGS
  try:
    processes.initialize(args.coordinator, args.num_processes, args.process_id)
    if jax.distributed.is_initialized():
      # If one dies, the runtime aborts the others and names it; the stacks of
      # all threads would bury that message.
      faulthandler.disable()
  except (ValueError, OSError, RuntimeError) as error:
    print_error(error)
    sys.exit(1)  # No other process to wait for.


def fail_among_others(error: Exception) -> NoReturn:
  """Ends a process after an error that another one may have caused.

  Collectives raise many types of errors when a process has died.
  """
  traceback.print_exc()
  first = str(error).strip().partition("\n")[0][:300]
  print(
    f"\nerror: process {jax.process_index()} of {processes.count()} cannot "
    f"continue ({first}). If another process failed, its own message says why."
    " Start all of them again: the same command resumes at the newest "
    "checkpoint",
    file=sys.stderr,
    flush=True,
  )
  processes.finish(1)


def silence_orbax_threads() -> None:
  """Hides what they print when a save fails; `Checkpoints` reports it."""
  logging.getLogger("absl").addFilter(
    lambda entry: not ORBAX_MESSAGE.search(entry.getMessage())
  )
  usual = threading.excepthook

  def hook(raised):
    if type(raised.thread).__name__ != ORBAX_THREAD:
      usual(raised)

  threading.excepthook = hook


def resend_interrupts() -> None:
  """Repeats an interrupt that Python drops.

  Python drops interrupts that arrive in a finaliser or in a callback of the
  garbage collector, such as JAX's: exceptions cannot leave these.
  """
  usual = sys.unraisablehook

  def hook(dropped):
    if dropped.exc_type is not KeyboardInterrupt:
      usual(dropped)
      return
    # From another thread: here it would be dropped again.
    again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()

  sys.unraisablehook = hook


def start_jax() -> None:
  """Starts the backend; an error names the package extra that it needs."""
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
  """Parses flags; turns the errors of config_flags into messages."""
  try:
    return flags.FLAGS(argv)
  except (*EXPECTED, flags.Error, AttributeError, KeyError) as error:
    fail(error)


def fail(error: Exception) -> NoReturn:
  """Prints an error and ends the program."""
  if os.environ.get(TRACEBACK):
    raise error
  print_error(error)
  processes.finish(1)


def print_error(error: Exception) -> None:
  """Prints the message of an error."""
  while len(error.args) == 1 and isinstance(error.args[0], Exception):
    error = error.args[0]
  text = str(error.args[0]) if len(error.args) == 1 else str(error)
  if isinstance(error, (KeyError, AttributeError)):  # config_flags raises them.
    text = f"no such key in the config: {text}"
  if "Traceback" in text:  # config_flags quotes one; the last line matters.
    text = text.strip().splitlines()[-1].partition("Error: ")[2]
  # absl puts the flag before messages that name it already.
  text = re.sub(r"^flag (--[\w.]+)=.*?: (?=\1 = )", "", text, flags=re.DOTALL)
  print(f"\nerror: {text}", file=sys.stderr, flush=True)


def warn_of_idle_accelerator() -> None:
  """Warns if the machine has an accelerator that JAX does not use."""
  if jax.default_backend() != "cpu" or jax.config.jax_platforms == "cpu":
    return  # It is in use, or idle on purpose.
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
