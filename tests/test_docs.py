"""Pages are true: links, files, names, keys of configs and flags exist.

`test_docs_code.py` runs their Python.
"""

import functools
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import typing

import pytest
from support.configs import ROOT
from support.pages import DOCSTRINGS, PAGES, Page, flag_names

every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
COMMANDED = PAGES | {k: v for k, v in DOCSTRINGS.items() if v.commands}
every_command = pytest.mark.parametrize(
  "page", COMMANDED.values(), ids=COMMANDED.keys()
)

# Blocks that cannot run: code of diffusers; a run that takes minutes.
NOT_RUN = {"docs/from_diffusers.md": 1, "docs/modalities.md": 1}

COMMANDS = ("train", "infer", "evaluate", "convert", "encode", "plan")
FLAGS_OF = """
import importlib, json, sys
from absl import app, flags

app.run = lambda *args, **options: None
found = {}
for name in sys.argv[1:]:
  before = {*flags.FLAGS}
  importlib.import_module(f"lumina_jax.{name}").run()
  new = {*flags.FLAGS} - before
  found[name] = [*new, *(f"no{x}" for x in new if flags.FLAGS[x].boolean)]
  for flag in new:
    delattr(flags.FLAGS, flag)
print(json.dumps(found))
"""
# Flags of srun, sbatch, sacct and gcloud that the launchers' pages explain.
OTHERS = {
  *("gpus-per-node", "gpus-per-task", "gpu-bind", "ntasks-per-node"),
  *("signal", "requeue", "kill-on-bad-exit", "duplicates", "node-count"),
  "group.field",  # Stands for any.
}
SUFFIXES = ("py", "sh", "sbatch", "md")
FILES = ("safetensors", "json", "png")
# Folders that the commands of the pages make.
OUTPUTS = re.findall(r"^/(\w+)/$", (ROOT / ".gitignore").read_text(), re.M)
NOT_OURS = r"radar|USE_POLICY"  # An example; a file of another repository.


@every_page
def test_links(page):
  broken = []
  for link in page.links:
    name, _, anchor = link.partition("#")
    path = (page.folder / name).resolve() if name else ROOT / page.path
    if not path.exists():
      broken.append(link)
    elif anchor:
      target = Page(path.relative_to(ROOT))
      broken += [link] if anchor not in target.anchors else []
  assert broken == []


@every_page
def test_named_files(page):
  """Files and tests in code spans, requirements and configs anywhere."""
  named = [x for x in page.spans if re.fullmatch(r"[\w./-]+(::\w+)?", x)]
  wrong = [name for name in named if not is_there(page, name)]
  listed = r"\b(?:requirements[\w-]*\.txt|configs/\w+\.py|launch/[\w/]+\.\w+)"
  wrong += [f for f in re.findall(listed, page.text) if not is_there(page, f)]
  assert wrong == []


def is_there(page: Page, name: str) -> bool:
  """Whether a file, and a test in it, exists; True if it names no file.

  A name is a file of this repository if it starts with one of its folders,
  other than outputs, or ends like source code.
  """
  name, _, test = name.partition("::")
  first, slash, _ = name.partition("/")
  in_root = slash and first not in OUTPUTS and (ROOT / first).exists()
  room = name.endswith("/") and (ROOT / "lumina_jax" / first).exists()
  source = name.rpartition(".")[2] in SUFFIXES and not name.startswith(".")
  if not (in_root or room or source) or re.search(NOT_OURS, name):
    return True
  folders = ("", "lumina_jax", "configs", "launch", page.folder)
  found = [ROOT / f / name for f in folders if (ROOT / f / name).exists()]
  return bool(found) and (not test or f"def {test}(" in found[0].read_text())


@every_page
def test_names_of_modules(page):
  ours = r"(?:lumina_jax|data_pipelines|benchmarks)(?:\.\w+)+"
  named = {x for x in page.spans if re.fullmatch(ours, x)}
  named |= {*re.findall(rf"python -m ({ours})", page.text)}
  assert [name for name in sorted(named) if not resolves(name)] == []


def resolves(name: str) -> bool:
  """Whether a dotted name is a module, or something in one."""
  head, _, tail = name.rpartition(".")
  if importlib.util.find_spec(head) is None:
    return False
  module = importlib.import_module(head)
  is_package = hasattr(module, "__path__")
  if is_package and importlib.util.find_spec(name) is not None:
    return True
  return hasattr(module, tail)


@every_command
def test_config_keys(page):
  dotted = r"(?:--)?(config\.)?([a-z_]+(?:\.[a-z_]+)*)(?:[ =].*)?"
  found = [re.fullmatch(dotted, span) for span in page.spans]
  keys = [
    match[2]
    for match in found
    if match
    and match[0].rpartition(".")[2] not in FILES
    and (match[1] or is_section(match[2]))
  ]
  for words in page.commands:
    flags = flag_names(words)
    keys += [x.removeprefix("config.") for x in flags if "config." in x]
  assert [key for key in keys if not is_key(key)] == []


def is_section(key: str) -> bool:
  """Whether a dotted name starts with a section of the config."""
  section, dot, _ = key.partition(".")
  return bool(dot) and section in sections()


@functools.cache
def sections() -> dict[str, list[type]]:
  """The dataclasses of each section of a run's config."""
  from lumina_jax.training.run_config import RunConfig

  hints = typing.get_type_hints(RunConfig)
  return {name: list(dataclasses_of(kind)) for name, kind in hints.items()}


def dataclasses_of(kind: typing.Any) -> typing.Iterator[type]:
  for member in typing.get_args(kind) or (kind,):
    if hasattr(member, "__dataclass_fields__"):
      yield member


def is_key(key: str) -> bool:
  section, _, name = key.partition(".")
  if section not in sections():
    return False
  return not name or any(
    name in cls.__dataclass_fields__ for cls in sections()[section]
  )


@every_command
def test_configs_have_the_named_variants(page):
  for words in page.commands:
    for word in words:
      if match := re.fullmatch(r"--config=configs/(\w+)\.py:(\w+)", word):
        importlib.import_module(f"configs.{match[1]}").get_config(match[2])


@pytest.fixture(scope="module")
def flags_of():
  """Names of the flags of each command."""
  ran = subprocess.run(
    [sys.executable, "-c", FLAGS_OF, *COMMANDS],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stderr
  found = {name: {*flags} for name, flags in json.loads(ran.stdout).items()}
  for path in [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("launch/*/*.sh")]:
    found[str(path.relative_to(ROOT))] = defined_in(path)
  path = ROOT / "data_pipelines/photographs.py"
  return found | {"data_pipelines/photographs.py": defined_in(path)}


def defined_in(path) -> set[str]:
  """Flags of a script, by its source."""
  how = r'DEFINE_\w+\(\s*"(\w+)"|add_argument\(\s*"--(\w+)"'
  if path.suffix == ".sh":
    how = r"--([\w-]+)"
  found = re.findall(how, path.read_text())
  return {"".join(name) for name in found}


def program(words: list[str]) -> str | None:
  """The key of a command in `flags_of`; None = not ours."""
  if words[0] == "lumina":
    name = words[1] if len(words) > 1 else "infer"
    return name if name in COMMANDS else "infer"
  if words[0].startswith("launch/"):
    return words[0]
  name = words[2]
  if name.startswith("lumina_jax."):
    return name.removeprefix("lumina_jax.").replace("sample", "infer")
  path = f"{name.replace('.', '/')}.py"
  return path if (ROOT / path).exists() else None


@pytest.mark.e2e
@every_command
def test_flags(page, flags_of):
  wrong = []
  for words in page.commands:
    key = program(words)
    if key is None:
      continue
    own, rest = words, []
    if "--" in words:
      own, rest = words[: words.index("--")], words[words.index("--") + 1 :]
    known = flags_of[key] | {"help", "config"}
    wrong += [f"{key} --{x}" for x in flag_names(own) if not_in(x, known)]
    known = flags_of["train"]
    wrong += [f"train --{x}" for x in flag_names(rest) if not_in(x, known)]
  alone = [x.split() for x in page.spans if x.startswith("--")]
  known = set().union(*flags_of.values(), OTHERS)
  wrong += [x for words in alone for x in flag_names(words) if not_in(x, known)]
  assert wrong == []


def not_in(flag: str, known: set[str]) -> bool:
  """`test_config_keys` checks the keys of configs."""
  return not flag.startswith("config.") and flag not in known


@every_page
def test_python_is_python(page):
  for block in page.python:
    compile(block, str(page.path), "exec")
  if page.path.name != "README.md":
    not_run = len(page.python) - len(page.runnable)
    assert not_run == NOT_RUN.get(str(page.path), 0)
