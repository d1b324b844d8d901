"""A medium of its own: tests/support/radar adds four files and edits tables."""

import numpy as np
import pytest
from support.configs import ROOT
from support.fake_devices import run
from support.radar import data, lumina

from lumina_jax import LuminaPipeline, media
from lumina_jax.pretrained import codecs
from lumina_jax.training.run_config import RunConfig

RADAR = ROOT / "tests/support/radar"
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run of radar, trained by the command."""
  folder = tmp_path_factory.mktemp("radar")
  config = f"--config={RADAR / 'config.py'}:{RADAR / 'dct'}"
  run(1, RADAR / "lumina.py", "train", config, f"--workdir={folder}")
  return folder


def recognised(signal) -> int:
  """The target whose echo without noise correlates best."""
  echoes = [data.echo(speed, len(signal)) for speed in range(data.SPEEDS)]
  rows = np.corrcoef([signal[:, 0], *(echo[:, 0] for echo in echoes)])
  assert rows[0, 1:].max() > 0.9  # Real ones reach 0.99.
  return int(rows[0, 1:].argmax())


def test_the_commands_train_and_sample_it(workdir, tmp_path):
  assert (workdir / "samples/data.png").exists()
  prompts = [f"--prompt=target {speed}" for speed in range(data.SPEEDS)]
  words = [f"--workdir={workdir}", f"--output={tmp_path}", "--seed=3"]
  run(
    1, RADAR / "lumina.py", "infer", *prompts, *words, "--radar_length_in_s=1"
  )
  for speed in range(data.SPEEDS):
    (path,) = tmp_path.glob(f"target_{speed}_*.npz")
    file = np.load(path)
    assert file["signal"].shape == (64, 1)
    assert recognised(file["signal"]) == speed
    assert f"target {speed}" in str(file["parameters"])
  assert (tmp_path / "overview.png").exists()


def test_python_calls_and_exports_it(workdir, tmp_path, monkeypatch):
  # Entries that end with the test.
  monkeypatch.setitem(media.MEDIA, "radar", None)
  monkeypatch.setitem(codecs.FORMATS, "Dct", None)
  hints = RunConfig.__annotations__
  monkeypatch.setitem(hints, "data", hints["data"])
  lumina.register()
  pipe = LuminaPipeline.from_workdir(workdir)
  prompts = ["target 1", "target 2"]
  call = dict(radar_length_in_s=[1, 0.5], num_signals_per_prompt=2)
  signals = pipe(prompts, **call).signals
  assert [len(x) for x in signals] == [64, 64, 32, 32]
  assert [recognised(x) for x in signals[:2]] == [1, 1]
  pipe.save_pretrained(tmp_path / "export", dtype="float32")
  again = LuminaPipeline.from_pretrained(tmp_path / "export")
  found = again(prompts, **call).signals
  for one, other in zip(found, signals, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  message = "generates radar signals, with radar_length_in_s"
  with pytest.raises(TypeError, match=message):
    pipe("target 1", height=8)
