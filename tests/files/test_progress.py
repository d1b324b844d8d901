"""Progress where there is no terminal."""

from lumina_jax.files import progress
from lumina_jax.files.progress import Progress


def test_plain_lines_come_now_and_then_and_at_the_end(capsys, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  with Progress("training", total=100) as bar:
    for step in range(1, 101):
      now[0] += 0.5
      bar.show(step, "loss 0.5")
  lines = capsys.readouterr().out.splitlines()
  assert 5 <= len(lines) <= 8
  assert lines[0] == "training: 1/100 steps  loss 0.5"
  assert (
    lines[-1] == "training: 100/100 steps  loss 0.5  2.0 steps/s  0:00 left"
  )
  assert "2.0 steps/s  0:40 left" in lines[1]


def test_pauses_do_not_count_as_slowness(capsys, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  with Progress("training", total=3) as bar:
    bar.show(1)
    with bar.paused():
      now[0] += 100
    now[0] += 1
    bar.show(3)
  assert "2.0 steps/s" in capsys.readouterr().out
