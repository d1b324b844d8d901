"""Tables of results: printed, as HTML, and as JSON."""

import dataclasses
import html

import rich.console
import rich.table


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of text.

  Attributes:
    title: title above the table.
    columns: heads of the columns.
    rows: cells of each row.
  """

  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]

  def __post_init__(self):
    object.__setattr__(self, "columns", tuple(self.columns))
    object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))

  def to_html(self) -> str:
    """A heading and a table."""

    def row(cells, tag):
      inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
      return f"<tr>{inner}</tr>"

    body = "".join(row(cells, "td") for cells in self.rows)
    head = f"<h2>{html.escape(self.title)}</h2>"
    return f"{head}<table>{row(self.columns, 'th')}{body}</table>"

  def print(self) -> None:
    """Prints the table to the console."""
    table = rich.table.Table(title=self.title)
    columns = zip(self.columns, zip(*self.rows, strict=True), strict=True)
    for name, cells in columns:
      numbers = all(cell.replace(".", "").isdigit() for cell in cells)
      table.add_column(name, justify="right" if numbers else "left")
    for cells in self.rows:
      table.add_row(*cells)
    rich.console.Console().print(table)


def by_time(title: str, losses: list[float | None]) -> Table:
  """The loss of each of equal bins of t, from 0 to 1."""
  rows = tuple(
    (f"{i / len(losses):.1f}", "-" if loss is None else f"{loss:.3f}")
    for i, loss in enumerate(losses)
  )
  return Table(title, ("from t", "loss"), rows)
