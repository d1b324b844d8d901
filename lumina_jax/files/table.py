"""Tables as plain text, laid out by rich."""

import io
from collections.abc import Iterable, Sequence

from rich.box import Box
from rich.console import Console
from rich.table import Table

# Columns without borders; a line of dashes between sections.
_BOX = Box("    \n    \n    \n    \n -- \n    \n    \n    \n", ascii=True)


def text_table(
  header: Sequence[str],
  rows: Iterable[Sequence[str]],
  totals: Iterable[Sequence[str]] = (),
  left: int = 1,
) -> str:
  """Lays out rows in columns.

  Args:
    header: titles of the columns; () = none.
    rows: cells, as many per row as there are columns.
    totals: rows below a line of dashes.
    left: number of leading columns that align left; the others align right.
  """
  rows, totals = [*rows], [*totals]
  table = Table(
    box=_BOX, show_edge=False, pad_edge=False, show_header=False, padding=(0, 1)
  )
  lines = [*([header] if header else []), *rows, *totals]
  for column in range(len(lines[0])):
    table.add_column(justify="left" if column < left else "right", no_wrap=True)
  for number, line in enumerate(lines, 1):
    table.add_row(*line, end_section=number == len(lines) - len(totals))
  width = 4 + sum(len(cell) + 3 for line in lines for cell in line)
  console = Console(
    file=io.StringIO(), width=width, color_system=None, markup=False,
    highlight=False, emoji=False,
  )  # fmt: skip
  console.print(table)
  return console.file.getvalue().rstrip("\n")
