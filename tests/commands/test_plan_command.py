"""lumina plan: its output, its exit codes, bad input."""

import json

import jax
import pytest
from support.configs import small_flags
from support.zygote import fork

from lumina_jax import plan as command

CONFIG = "--config=configs/digits.py"
TINY = "--config=configs/text_to_image.py:tiny"


def plan(*words: str, config: str = CONFIG, module: str = "plan"):
  """Runs the command; digits are small."""
  small = small_flags() if config == CONFIG else []
  name = ["plan"] if module == "cli" else []
  return fork(module, *name, config, *small, *words)


@pytest.mark.long
def test_the_batch_of_a_config_on_fake_devices():
  done = plan("--topology=cpu:8", module="cli")
  assert done.returncode == 0, done.stderr
  for text in (
    "a training step on cpu:8, 8 devices",
    "mesh     data 8, fsdp 1, context 1, tensor 1",
    "8 rows of 40 tokens and 20 words, 10 samples per row",
    "memory per device, MiB",
    "all-reduce",
    "FLOPs of matrix products",
    "FITS",
  ):
    assert text in done.stdout


@pytest.mark.e2e
def test_json_of_a_long_row_on_many_devices():
  mesh = "--mesh=data=1,fsdp=2,context=4"
  done = plan("--topology=cpu:8", "--tokens=1024", mesh, "--rows=2", "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["mesh"] == {"data": 1, "fsdp": 2, "context": 4, "tensor": 1}
  assert (found["rows"], found["budget"]) == (4, [1024, 128, 1])
  assert found["collectives"]["all-gather"]["sent"] > 0
  assert found["memory"]["parameters"] * 8 >= 4 * found["parameters"]
  assert found["memory"]["peak"] > found["memory"]["parameters"]
  assert (found["fits"], found["suggestions"]) == (True, [])


def test_a_call_of_the_sampler():
  done = plan("--topology=cpu:2", "--sample", "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["program"] == "sample"
  memory = found["memory"]
  assert (memory["ema"], memory["optimizer"]) == (0, 0)
  assert memory["parameters"] == 2 * found["parameters"]  # bfloat16


@pytest.mark.long
def test_search_prints_a_table():
  done = plan("--topology=cpu:2", "--tokens=128", "--search", "--compiles=1")
  assert done.returncode == 0, done.stderr
  assert "the 1 most promising compiled (--compiles), 1 fit" in done.stdout
  assert "--mesh=data=" in done.stdout
  assert "searching: 1/1 programs" in done.stdout


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--topology=v5x:4x4"], "did you mean 'v5e:4x4'"),
    (["--topology=cpu:8", "--mesh=data=3"], "needs 3 devices, there are 8"),
    (["--topology=cpu:8", "--mesh=dta=3"], "'dta=3' is not one of data=N"),
    (["--topology=cpu:8", "--remat=ful"], "unknown remat 'ful'; did you mean"),
    (["--topologi=cpu:8"], "Did you mean: topology"),
    ([], "topology"),
  ],
)
def test_bad_input_ends_with_2(words, message):
  done = plan(*words)
  assert done.returncode == 2, done.stdout
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_help_exits_with_0():
  done = plan("--help")
  assert done.returncode == 0
  assert "--topology" in done.stdout


def test_compiler_errors_are_printed_whole(capsys):
  with pytest.raises(SystemExit) as end, command.exit_codes():
    raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nbecause of it")
  assert end.value.code == 3
  printed = capsys.readouterr().err
  assert "Traceback" in printed
  assert "because of it" in printed


@pytest.mark.compiler
def test_a_tpu_on_a_machine_without_one():
  """A job that fits, and one that does not, with suggestions."""
  pytest.importorskip("libtpu", reason='libtpu: pip install -e ".[tpu]"')
  done = plan("--topology=v5e:1x1", "--json", config=TINY)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["memory"]["usable"] == int(15.75 * 2**30)
  assert 0 < found["roofline"]["mfu"] < 1
  many = ["--tokens=131072", "--rows=64"]
  done = plan("--topology=v5e:1x1", *many, config=TINY)
  assert done.returncode == 1, done.stderr
  assert "DOES NOT FIT" in done.stdout
  assert "fits:\n  --" in done.stdout
