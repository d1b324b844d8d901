"""Traces of some steps."""

import jax.numpy as jnp
import pytest

from lumina_jax.training.profile import FOLDER, Profiler


def test_the_requested_steps_are_traced(tmp_path, capsys):
  profiler = Profiler("2:3", tmp_path)
  for step in range(1, 5):
    profiler.before_step(step)
    profiler.after_step(step, jnp.ones(3) + step)
    assert (tmp_path / FOLDER).exists() == (step >= 3)
  profiler.close()
  assert list((tmp_path / FOLDER).rglob("*.trace.json.gz"))
  assert "trace of steps 2 to 3" in capsys.readouterr().out


def test_a_run_that_starts_after_them_says_so(tmp_path, capsys):
  profiler = Profiler("2:3", tmp_path)
  profiler.before_step(7)
  profiler.after_step(7, 0)
  profiler.close()
  assert "step 2 did not run" in capsys.readouterr().out
  Profiler("", tmp_path).close()
  assert not capsys.readouterr().out and not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("steps", ["3", "5-9", "0:4", "9:5", "a:b"])
def test_an_invalid_range_is_refused(steps, tmp_path):
  with pytest.raises(ValueError, match="such as 10:13"):
    Profiler(steps, tmp_path)
