"""Tables of results in the console, on a page and in JSON."""

import dataclasses
import json

from lumina_jax.runs.tables import Table, by_time

TABLE = Table("Rates & shares", ("digits", "rate"), (("<1>", "0.5"),))


def test_a_table_survives_json():
  text = json.dumps(dataclasses.asdict(TABLE))
  assert Table(**json.loads(text)) == TABLE


def test_a_page_escapes_text():
  page = TABLE.to_html()
  assert "<h2>Rates &amp; shares</h2>" in page
  assert "<td>&lt;1&gt;</td><td>0.5</td>" in page


def test_the_console_shows_every_cell(capsys):
  TABLE.print()
  printed = capsys.readouterr().out
  assert all(text in printed for text in ("digits", "rate", "<1>", "0.5"))


def test_a_loss_by_time_names_the_start_of_each_bin():
  table = by_time("Loss", [1.0, None])
  assert table.rows == (("0.0", "1.000"), ("0.5", "-"))
