"""Evaluates a run on the digits: python -m lumina_jax.evaluate --workdir=...

Prints, and writes to `<workdir>/evaluation.json` and `report.html`:
  - prompt accuracy: a support vector classifier, fitted to the real training
    digits, classifies every digit of generated canvases;
  - memorisation: how far generated digits are from the nearest training digit,
    compared with held-out real digits;
  - the held-out flow loss by time.

All devices of all processes take part; process 0 prints and writes.
"""

from typing import Any

from absl import flags
from etils import epath

from lumina_jax.commands import start as entry_point
from lumina_jax.evaluation import digits_report
from lumina_jax.files.json_file import write_json
from lumina_jax.parallel import processes
from lumina_jax.runs import report
from lumina_jax.runs import workdir as workdirs
from lumina_jax.runs.tables import Table
from lumina_jax.training import run_config


def write(result: dict[str, Any], folder: epath.Path) -> None:
  """Writes the result to a workdir, and updates its report."""
  write_json(folder / report.EVALUATION, result)
  report.write(folder)


@processes.only_first_prints()
def main(_) -> None:
  processes.exit_on_sigterm()  # Files are written atomically.
  args, folder = flags.FLAGS, epath.Path(flags.FLAGS.workdir)
  config = run_config.load(folder)
  digits_report.check(config)
  step, components = workdirs.load_step(folder)
  result = digits_report.evaluate(config, components, args.cells)
  result = {"step": step} | result
  for table in result["tables"]:
    Table(**table).print()
  processes.on_first(lambda: write(result, folder))
  print(f"\nwritten: {folder / report.EVALUATION} and {report.FILE} beside it")


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_string("workdir", None, "Folder of the run to evaluate.")
  flags.DEFINE_integer(
    "cells", 500, "Digits for each canvas size and phrasing.", lower_bound=1
  )
  flags.mark_flags_as_required(["workdir"])
  entry_point.run(main)


if __name__ == "__main__":
  run()
