"""`report.html`: a run on one page, self-contained, for a browser.

Loss curve, sample pictures by step, evaluate's table if there is one, what the
run was made of, and what to type next.
"""

from __future__ import annotations

import base64
import html
import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

from etils import epath

from lumina_jax.files import atomic
from lumina_jax.runs import record
from lumina_jax.training import metrics

FILE = "report.html"
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 260, 48, 28

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 860px;
  margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
h1, h2 { font-weight: 600 } h2 { margin-top: 2em }
table { border-collapse: collapse } th, td { padding: .2em .8em;
  border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; border: 1px solid #ddd }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto }
svg text { font: 12px system-ui, sans-serif; fill: #555 }
"""


def write(folder: epath.Path) -> None:
  """Writes the report of a workdir from the files that lie there."""
  folder = epath.Path(folder)
  config, rows = _json(folder / "config.json"), metrics.read(folder)
  parts = [
    _curve(rows),
    _health(rows),
    _evaluation(_json(folder / "evaluation.json")),
    _samples(folder),
    _record(record.read(folder), config),
    _next(folder, config),
  ]
  body = "\n".join(part for part in parts if part)
  page = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(folder.name)}</title><style>{STYLE}</style>"
    f"<h1>{html.escape(folder.name)}</h1>\n{body}</html>\n"
  )
  atomic.write_text(folder / FILE, page)


def _json(path: epath.Path) -> Any:
  text = atomic.read_text(path)
  return None if text is None else json.loads(text)


def _curve(rows: Sequence[dict[str, float]]) -> str:
  rows = [row for row in rows if row["loss"] is not None]  # Skipped all.
  if not rows:
    return "<h2>Loss</h2><p>No metrics yet.</p>"
  steps = [row["step"] for row in rows]
  losses = [row["loss"] for row in rows]
  speed = rows[-1].get("steps_per_second", math.nan)
  low, high = min(losses), max(losses)
  span, last = max(high - low, 1e-9), max(steps)

  def point(step, loss):
    x = LEFT + (WIDTH - LEFT - 8) * step / last
    y = 8 + (HEIGHT - BOTTOM - 8) * (high - loss) / span
    return f"{x:.1f},{y:.1f}"

  line = " ".join(map(point, steps, losses))
  floor = HEIGHT - BOTTOM
  return (
    f'<h2>Loss</h2><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" '
    'role="img" aria-label="training loss by step">'
    f'<path d="M{LEFT} 8V{floor}H{WIDTH - 8}" fill="none" stroke="#999"/>'
    f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="1.5"/>'
    f'<text x="{LEFT - 6}" y="14" text-anchor="end">{high:.3f}</text>'
    f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">{low:.3f}</text>'
    f'<text x="{LEFT}" y="{HEIGHT - 8}">0</text>'
    f'<text x="{WIDTH - 8}" y="{HEIGHT - 8}" text-anchor="end">step {last}'
    f"</text></svg><p>Last: {losses[-1]:.4f} at step {steps[-1]}, "
    f"{speed:.2f} steps/s.</p>"
  )


# Of a line of metrics, by what people call it.
HEALTH = (
  ("examples_per_second", "examples/s", "{:.1f}"),
  ("tokens_per_second", "tokens/s", "{:.0f}"),
  ("mfu", "MFU", "{:.1%}"),
  ("useful_tokens", "useful tokens", "{:.1%}"),
  ("data_wait", "waiting for data", "{:.1%}"),
  ("goodput", "goodput", "{:.1%}"),
  ("learning_rate", "learning rate", "{:.2e}"),
  ("grad_norm", "gradient norm", "{:.3g}"),
  ("skipped", "skipped updates", "{:.0f}"),
  ("bad_records", "broken records", "{:.0f}"),
  ("host_memory", "host memory, GiB", "{:.2f}"),
  ("device_memory", "device memory, GiB", "{:.2f}"),
)


def _health(rows: Sequence[dict[str, Any]]) -> str:
  """The last line of metrics, and its loss by time."""
  last = rows[-1] if rows else {}
  shown = [
    [name, form.format(last[key])]
    for key, name, form in HEALTH
    if last.get(key) is not None
  ]
  if not shown:
    return ""
  page = f"<h2>At step {last['step']}</h2>{_table(['', ''], shown)}"
  losses = last.get("loss_by_time") or []
  if any(loss is not None for loss in losses):
    times = [f"{i / len(losses):.1f}" for i in range(len(losses))]
    cells = ["-" if loss is None else f"{loss:.3f}" for loss in losses]
    page += "<h2>Training loss by time</h2>"
    page += _table(["from t", *times], [["loss", *cells]])
  return page


def _evaluation(result: dict[str, Any] | None) -> str:
  if result is None:
    return ""
  rows = result["accuracy"]
  guidance = sorted({row["guidance"] for row in rows})
  accuracy = {
    (row["canvas"], row["phrasing"], row["guidance"]): row["accuracy"]
    for row in rows
  }
  unseen = {row["canvas"] for row in rows if not row["trained"]}
  example = {(r["canvas"], r["phrasing"]): r["example"] for r in rows}
  body = [
    [
      f"{canvas}{' unseen' if canvas in unseen else ''}",
      example[canvas, phrasing],
      *(f"{accuracy[canvas, phrasing, scale]:.3f}" for scale in guidance),
    ]
    for canvas, phrasing in dict.fromkeys(key[:2] for key in accuracy)
  ]
  head = [
    "canvas",
    "prompts like",
    *(f"guidance {scale:g}" for scale in guidance),
  ]
  judged = {"real, held out": result["held_out_digits"]} | {
    f"generated, guidance {scale}": values
    for scale, values in result["memorisation"].items()
  }
  memory = [
    [name, f"{v['distance']:.3f}", f"{v['near_duplicates']:.3f}"]
    for name, v in judged.items()
  ]
  losses = [f"{loss:.3f}" for loss in result["held_out_loss_by_time"]]
  times = [f"{i / len(losses):.1f}" for i in range(len(losses))]
  return (
    f"<h2>Prompt accuracy per digit, at step {result['step']}</h2>"
    + _table(head, body)
    + "<h2>Distance to the nearest training digit</h2>"
    + _table(["digits", "distance", "near-duplicates"], memory)
    + "<h2>Held-out flow loss by time</h2>"
    + _table(["from t", *times], [["loss", *losses]])
  )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  def line(cells, tag):
    inner = "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)
    return f"<tr>{inner}</tr>"

  body = "".join(line(row, "td") for row in rows)
  return f"<table>{line(head, 'th')}{body}</table>"


def _samples(folder: epath.Path) -> str:
  """The newest picture first, each embedded."""
  pictures = sorted((folder / "samples").glob("step_*.png"), reverse=True)
  shown = []
  for path in pictures:
    step = int(path.stem.removeprefix("step_"))
    image = _image(path, f"samples at step {step}")
    shown.append(f"<h3>Step {step}</h3>{image}")
  page = f"<h2>Samples</h2>{''.join(shown)}" if shown else ""
  learnt = folder / "samples" / "data.png"
  if learnt.exists():
    page += f"<h2>What it learns from</h2>{_image(learnt, 'training data')}"
  return page


def _image(path: epath.Path, what: str) -> str:
  data = base64.b64encode(path.read_bytes()).decode()
  return f'<img alt="{what}" src="data:image/png;base64,{data}">'


def _record(starts: Sequence[dict[str, Any]], config: Any) -> str:
  rows = [
    [
      start["started"],
      str(start["from_step"]),
      start["git_commit"],
      f"{len(start['devices'])} x {start['device_kind']}",
      start["packages"]["jax"],
    ]
    for start in starts
  ]
  head = ["started", "from step", "commit", "devices", "jax"]
  text = html.escape(json.dumps(config, indent=2))
  return (
    f"<h2>Record</h2>{_table(head, rows)}"
    f"<details><summary>config.json</summary><pre>{text}</pre></details>"
  )


def _next(folder: epath.Path, config: dict[str, Any]) -> str:
  where = shlex.quote(str(folder))
  prompt = shlex.quote(config["training"]["sample_prompts"][0])
  lines = [f"python -m lumina_jax.sample --workdir={where} --prompt={prompt}"]
  if "canvases" in config["data"]:  # evaluate reads digits only.
    lines.append(f"python -m lumina_jax.evaluate --workdir={where}")
  text = html.escape("\n".join(lines))
  return f"<h2>Next</h2><pre>{text}</pre>"
