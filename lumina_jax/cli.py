"""The `lumina` command: thin names for the entry points.

lumina train --config=configs/digits.py --workdir=runs/digits
lumina sample --workdir=runs/digits --prompt="3 1 4"
lumina evaluate --workdir=runs/digits
lumina convert SOURCE DESTINATION [--layout=diffusers ...]
lumina infer "3 1 4" [OUTPUT_DIR] [--flag=value ...]
"""

from __future__ import annotations

import difflib
import importlib
import sys

COMMANDS = ("train", "sample", "evaluate", "convert", "infer")


def main() -> None:
  """Runs `lumina COMMAND ...`."""
  command, *rest = sys.argv[1:] or ["--help"]
  if command in ("--help", "-h", "help"):
    print(__doc__)
    return
  if command not in COMMANDS:
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    print(
      f"error: unknown command {command!r}; {hint}"
      f"there are: {', '.join(COMMANDS)}",
      file=sys.stderr,
    )
    sys.exit(2)
  if command == "infer":
    command, rest = "sample", infer_flags(rest)
  # absl takes the first word for the module whose flags --help lists.
  sys.argv = [f"lumina_jax.{command}", *rest]
  importlib.import_module(f"lumina_jax.{command}").run()


def infer_flags(words: list[str]) -> list[str]:
  """PROMPT [OUTPUT_DIR] [--flag=value ...] -> flags of `sample`.

  Raises:
    SystemExit: if there is no prompt or too much.
  """
  plain = [word for word in words if not word.startswith("-")]
  options = [word for word in words if word.startswith("-")]
  if not 1 <= len(plain) <= 2:
    print(
      'usage: lumina infer "3 1 4" [OUTPUT_DIR] [--flag=value ...]\n'
      "(write a flag and its value as one word, --seed=1)",
      file=sys.stderr,
    )
    sys.exit(2)
  output = [f"--output={plain[1]}"] if len(plain) == 2 else []
  return [f"--prompt={plain[0]}", *output, *options]


if __name__ == "__main__":
  main()
