"""Prints Markdown tables row by row, as they are measured."""


def print_head(cells: list[str]) -> None:
  print_row(cells)
  print_row(["---"] * len(cells))


def print_row(cells: list[str]) -> None:
  print(f"| {' | '.join(cells)} |", flush=True)
