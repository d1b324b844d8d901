"""The `lumina` command: thin names for the entry points.

lumina train --config=configs/digits.py --workdir=runs/digits
lumina sample --workdir=runs/digits --prompt="3 1 4"
lumina evaluate --workdir=runs/digits
lumina convert SOURCE DESTINATION [--layout=diffusers ...]
lumina plan --config=configs/digits.py --topology=v5e:1x1
lumina encode --source=photos --output=shards --resolutions=256
lumina infer PROMPT [OUTPUT_DIR] [--ckpt=FOLDER ...]
lumina "A snowman of ..." [OUTPUT_DIR] ...     the same: a first word with a
                                               space in it is a prompt
lumina COMMAND --help                          its flags
"""

from __future__ import annotations

import difflib
import importlib
import sys

COMMANDS = ("train", "sample", "evaluate", "convert", "plan", "infer", "encode")


def main() -> None:
  """Runs `lumina COMMAND ...`."""
  command, *rest = sys.argv[1:] or ["--help"]
  if command in ("--help", "-h", "help"):
    print(__doc__)
    return
  if len(command.split()) > 1 and not command.startswith("-"):
    command, rest = "infer", [command, *rest]
  if command not in COMMANDS:
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    print(
      f"error: unknown command {command!r}; {hint}"
      f"there are: {', '.join(COMMANDS)}",
      file=sys.stderr,
    )
    sys.exit(2)
  # absl takes the first word for the module whose flags --help lists, and
  # begins that with what the main module says of itself.
  sys.argv = [f"lumina_jax.{command}", *rest]
  module = importlib.import_module(f"lumina_jax.{command}")
  sys.modules["__main__"].__doc__ = module.__doc__
  module.run()


if __name__ == "__main__":
  main()
