"""Traces of some steps."""

import jax.numpy as jnp
import pytest

from lumina_jax.training.profile import FOLDER, Profile


def test_the_steps_that_were_asked_for_are_traced(tmp_path, capsys):
  profile = Profile("2:3", tmp_path)
  for step in range(1, 5):
    profile.before(step)
    profile.after(step, jnp.ones(3) + step)
    assert (tmp_path / FOLDER).exists() == (step >= 3)
  profile.close()
  assert list((tmp_path / FOLDER).rglob("*.trace.json.gz"))
  assert "trace of steps 2 to 3" in capsys.readouterr().out


def test_a_run_that_starts_behind_them_says_so(tmp_path, capsys):
  profile = Profile("2:3", tmp_path)
  profile.before(7)
  profile.after(7, 0)
  profile.close()
  assert "step 2 did not run" in capsys.readouterr().out
  Profile("", tmp_path).close()
  assert not capsys.readouterr().out and not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("steps", ["3", "5-9", "0:4", "9:5", "a:b"])
def test_what_is_no_range_is_refused(steps, tmp_path):
  with pytest.raises(ValueError, match="such as 10:13"):
    Profile(steps, tmp_path)
