"""`report.html`: a run on one self-contained page.

It shows the loss, the last metrics, the tables of an evaluation if there is
one, samples by step, the record of the run, and the next commands.
"""

import base64
import html
import json
import logging
import math
import shlex
from collections.abc import Sequence
from typing import Any

from etils import epath

from lumina_jax.files import atomic
from lumina_jax.parallel import processes
from lumina_jax.runs import record
from lumina_jax.runs.tables import Table, by_time
from lumina_jax.training import metrics, run_config

FILE = "report.html"
EVALUATION = "evaluation.json"
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

# Key, label and format of metrics.
METRICS = (
  ("examples_per_second", "examples/s", "{:.1f}"),
  ("tokens_per_second", "tokens/s", "{:.0f}"),
  ("mfu", "MFU", "{:.1%}"),
  ("useful_tokens", "useful tokens", "{:.1%}"),
  ("data_wait", "waiting for data", "{:.1%}"),
  ("goodput", "goodput", "{:.1%}"),
  ("learning_rate", "learning rate", "{:.2e}"),
  ("grad_norm", "gradient norm", "{:.3g}"),
  ("skipped", "skipped updates", "{:.0f}"),
  ("bad_records", "bad records", "{:.0f}"),
  ("host_memory", "host memory, GiB", "{:.2f}"),
  ("device_memory", "device memory, GiB", "{:.2f}"),
)


def update(folder: epath.Path) -> None:
  """Writes the report of a run in progress.

  Only process 0 writes; a full disk ends no run.
  """
  if not processes.is_first():
    return
  try:
    write(folder)
  except OSError as error:
    logging.warning("the report was not written: %s", error)


def write(folder: epath.Path) -> None:
  """Writes the report of a workdir from its files.

  Raises:
    OSError: if a file cannot be read or written.
  """
  folder = epath.Path(folder)
  config, rows = _read_json(folder / run_config.FILE), metrics.read(folder)
  parts = [
    _loss_curve(rows),
    *_last_metrics(rows),
    *_evaluation(_read_json(folder / EVALUATION)),
    _samples(folder),
    _record(record.read(folder), config),
    _next_commands(folder, config),
  ]
  body = "\n".join(part for part in parts if part)
  page = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(folder.name)}</title><style>{STYLE}</style>"
    f"<h1>{html.escape(folder.name)}</h1>\n{body}</html>\n"
  )
  # The name of a folder may hold bytes that are not text.
  atomic.write_bytes(folder / FILE, page.encode(errors="replace"))


def _read_json(path: epath.Path) -> Any:
  text = atomic.read_text(path)
  return None if text is None else json.loads(text)


def _loss_curve(rows: Sequence[dict[str, float]]) -> str:
  rows = [row for row in rows if row["loss"] is not None]
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


def _last_metrics(rows: Sequence[dict[str, Any]]) -> list[str]:
  """The last row of metrics, and its loss by time."""
  last = rows[-1] if rows else {}
  cells = tuple(
    (label, form.format(last[key]))
    for key, label, form in METRICS
    if last.get(key) is not None
  )
  if not cells:
    return []
  tables = [Table(f"At step {last['step']}", ("", ""), cells)]
  losses = last.get("loss_by_time") or []
  if any(loss is not None for loss in losses):
    tables.append(by_time("Training loss by time", losses))
  return [table.to_html() for table in tables]


def _evaluation(result: dict[str, Any] | None) -> list[str]:
  """The tables of `evaluation.json`, whatever was evaluated."""
  if result is None:
    return []
  title = f"<h2>Evaluation at step {result['step']}</h2>"
  return [title, *(Table(**table).to_html() for table in result["tables"])]


def _samples(folder: epath.Path) -> str:
  """All sheets of samples, newest first, then the training data."""
  page = ""
  for path in sorted((folder / "samples").glob("step_*.png"), reverse=True):
    step = int(path.stem.removeprefix("step_"))
    page += f"<h3>Step {step}</h3>{_image(path, f'samples at step {step}')}"
  page = page and f"<h2>Samples</h2>{page}"
  data = folder / "samples" / "data.png"
  if data.exists():
    page += f"<h2>Training data</h2>{_image(data, 'training data')}"
  return page


def _image(path: epath.Path, alt: str) -> str:
  data = base64.b64encode(path.read_bytes()).decode()
  return f'<img alt="{alt}" src="data:image/png;base64,{data}">'


def _record(starts: Sequence[dict[str, Any]], config: Any) -> str:
  rows = tuple(
    (
      start["started"],
      str(start["from_step"]),
      start["git_commit"],
      f"{len(start['devices'])} x {start['device_kind']}",
      start["packages"]["jax"],
    )
    for start in starts
  )
  columns = "started", "from step", "commit", "devices", "jax"
  text = html.escape(json.dumps(config, indent=2))
  return (
    f"{Table('Record', columns, rows).to_html()}"
    f"<details><summary>config.json</summary><pre>{text}</pre></details>"
  )


def _next_commands(folder: epath.Path, config: dict[str, Any]) -> str:
  workdir = shlex.quote(str(folder))
  prompt = shlex.quote(config["training"]["sample_prompts"][0])
  lines = [f"python -m lumina_jax.infer --workdir={workdir} --prompt={prompt}"]
  if "canvases" in config["data"]:  # evaluate supports digits only.
    lines.append(f"python -m lumina_jax.evaluate --workdir={workdir}")
  text = html.escape("\n".join(lines))
  return f"<h2>Next</h2><pre>{text}</pre>"
