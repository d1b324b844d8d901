"""The `lumina` command: one name for all commands.

lumina train --config=configs/digits.py --workdir=runs/digits
lumina infer PROMPT [OUTPUT_DIR] [--workdir=RUN | --ckpt=FOLDER ...]
lumina "A snowman of ..." [OUTPUT_DIR] ...     infer: the first word of a
                                               command holds no space
lumina evaluate --workdir=runs/digits
lumina convert SOURCE DESTINATION [--layout=diffusers ...]
lumina encode --source=FOLDER --output=FOLDER --resolutions=256 ...
lumina plan --config=configs/digits.py --topology=v5e:1x1
lumina COMMAND --help                          the flags of a command

`sample` is another name of `infer`.
"""

import importlib
import sys
from collections.abc import Sequence

from lumina_jax.files.suggest import check_name

COMMANDS = ("train", "infer", "evaluate", "convert", "encode", "plan")
ALIASES = {"sample": "infer"}


def main() -> None:
  """Runs `lumina COMMAND ...`."""
  command, *words = sys.argv[1:] or ["--help"]
  if command in ("--help", "-h", "help"):
    print(__doc__)
    return
  if len(command.split()) > 1 and not command.startswith("-"):
    command, words = "infer", [command, *words]
  command = ALIASES.get(command, command)
  try:
    check_name("command", command, [*COMMANDS, *ALIASES])
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  run(command, words)


def run(command: str, words: Sequence[str]) -> None:
  """Runs a command as `python -m lumina_jax.<command>` does."""
  name = f"lumina_jax.{command}"
  module = importlib.import_module(name)
  # absl lists the flags of the module that argv names, below the docstring of
  # the main module.
  sys.argv = [name, *words]
  sys.modules["__main__"].__doc__ = module.__doc__
  module.run()


if __name__ == "__main__":
  main()
