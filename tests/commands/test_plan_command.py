"""lumina plan: what it prints, its exit codes, what one can get wrong."""

import json

import jax
import pytest
from support.configs import small_flags
from support.forks import fork

from lumina_jax import plan as command

CONFIG = "--config=configs/digits.py"
TINY = "--config=configs/text_to_image.py:tiny"


def plan(*words: str, config: str = CONFIG, module: str = "plan"):
  """Runs the command; digits are small."""
  small = small_flags() if config == CONFIG else []
  name = ["plan"] if module == "cli" else []
  return fork(module, *name, config, *small, *words)


def test_the_batch_of_a_config_on_fake_devices():
  done = plan("--topology=cpu:8", module="cli")
  assert done.returncode == 0, done.stderr
  for said in (
    "a training step on cpu:8, 8 devices",
    "mesh     data 8, fsdp 1, context 1, tensor 1",
    "8 rows of 40 tokens and 20 words, 10 samples a row",
    "memory of a device, MiB",
    "all-reduce",
    "FLOPs of matrix products",
    "FITS",
  ):
    assert said in done.stdout


@pytest.mark.slow
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
  assert (found["fits"], found["remedies"]) == (True, [])


@pytest.mark.slow
def test_a_call_of_the_sampler():
  done = plan("--topology=cpu:2", "--sample", "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["program"] == "sample"
  memory = found["memory"]
  assert (memory["average"], memory["optimizer"]) == (0, 0)
  assert memory["parameters"] == 2 * found["parameters"]  # bfloat16


@pytest.mark.slow
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
    (["--topology=v5x:4x4"], "did you mean v5e:4x4"),
    (["--topology=cpu:8", "--mesh=data=3"], "needs 3 devices, there are 8"),
    (["--topology=cpu:8", "--mesh=dta=3"], "'dta=3' is none of data=N"),
    (
      ["--topology=cpu:8", "--remat=ful"],
      "unknown remat 'ful'; did you mean 'full'",
    ),
    (["--topologi=cpu:8"], "Did you mean: topology"),
    ([], "topology"),
  ],
)
def test_bad_input_ends_with_2(words, message):
  done = plan(*words)
  assert done.returncode == 2, done.stdout
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_help_is_no_mistake():
  done = plan("--help")
  assert done.returncode == 0
  assert "--topology" in done.stdout


def test_what_the_compiler_says_surfaces_whole(capsys):
  with pytest.raises(SystemExit) as end, command.ends_with_code():
    raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nbecause of it")
  assert end.value.code == 3
  said = capsys.readouterr().err
  assert "Traceback" in said
  assert "because of it" in said


@pytest.mark.slow
@pytest.mark.compiler
def test_a_tpu_that_is_not_there():
  """It fits; then so much that it does not, and what is offered instead."""
  pytest.importorskip("libtpu", reason='libtpu: pip install -e ".[tpu]"')
  done = plan("--topology=v5e:1x1", "--json", config=TINY)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["memory"]["usable"] == int(15.75 * 2**30)
  assert 0 < found["bound"]["mfu"] < 1
  many = ["--tokens=131072", "--rows=64"]
  done = plan("--topology=v5e:1x1", *many, config=TINY)
  assert done.returncode == 1, done.stderr
  assert "DOES NOT FIT" in done.stdout
  assert "fits:\n  --" in done.stdout
