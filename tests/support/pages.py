"""Reads pages: links, code, commands and the flags they pass."""

import ast
import dataclasses
import functools
import pathlib
import re
import shlex

from support.configs import ROOT

FENCE = re.compile(r"^(<!-- run -->\n)?```(\w*)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.M)
COMMAND = re.compile(r"^(lumina|python3? -m \S+|launch/\S+\.sh)(\s|$)")


@dataclasses.dataclass(frozen=True)
class Page:
  """A page of Markdown, or the docstring of a module as a block of code.

  Attributes:
    path: of the file, relative to the repository.
  """

  path: pathlib.Path

  @functools.cached_property
  def text(self) -> str:
    text = (ROOT / self.path).read_text()
    if self.path.suffix == ".py":
      return f"```\n{ast.get_docstring(ast.parse(text))}\n```\n"
    return text

  @functools.cached_property
  def prose(self) -> str:
    """The text without blocks of code."""
    return FENCE.sub("", self.text)

  @property
  def folder(self) -> pathlib.Path:
    return (ROOT / self.path).parent

  @property
  def links(self) -> list[str]:
    """Targets within the repository."""
    return [x for x in LINK.findall(self.prose) if "://" not in x]

  @property
  def anchors(self) -> set[str]:
    """Names that GitHub gives to the headings."""
    headings = [re.sub(r"[^\w\s-]", "", h) for h in HEADING.findall(self.prose)]
    return {heading.lower().replace(" ", "-") for heading in headings}

  @property
  def spans(self) -> list[str]:
    """Code within sentences and tables."""
    return [re.sub(r"\s+", " ", x) for x in SPAN.findall(self.prose)]

  @property
  def python(self) -> list[str]:
    """All blocks of Python."""
    return [c for _, kind, c in FENCE.findall(self.text) if kind == "python"]

  @property
  def runnable(self) -> list[str]:
    """Blocks of Python behind the comment `<!-- run -->`."""
    return [code for run, _, code in FENCE.findall(self.text) if run]

  @property
  def commands(self) -> list[list[str]]:
    """Commands of ours, in blocks and in sentences, as words."""
    blocks = [code for _, kind, code in FENCE.findall(self.text) if not kind]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r" && | \| ", line)]
    found = [x.strip() for x in (*parts, *self.spans)]
    return [_words(x) for x in found if COMMAND.match(x)]


def _words(command: str) -> list[str]:
  try:
    return shlex.split(command, comments=True)
  except ValueError:  # An apostrophe in the remark behind a command.
    return command.split()


def _pages(*patterns: str) -> dict[str, Page]:
  paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
  names = [path.relative_to(ROOT) for path in paths]
  return {str(name): Page(name) for name in names}


# Every page that describes the package to its users.
PAGES = _pages(
  "README.md",
  "CHANGELOG.md",
  "docs/*.md",
  "benchmarks/README.md",
  "launch/**/*.md",
  "lumina_jax/assets/*/README.md",
)
# Docstrings with commands.
DOCSTRINGS = _pages(
  "lumina_jax/[a-z]*.py",
  "configs/*.py",
  "benchmarks/*.py",
  "data_pipelines/photographs.py",
)


def flag_names(words: list[str]) -> list[str]:
  """Names of the flags among the words of a command."""
  if words[:1] and words[0].startswith("python"):
    words = words[3:]  # -m is a flag of Python.
  found = (re.match(r"(?:--|-(?=\w$))(\w[\w.-]*)", word) for word in words)
  return [match[1] for match in found if match]
