"""The flag --config, whose every key --config.section.key=value can set."""

from __future__ import annotations

from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lumina_jax.files import schema
from lumina_jax.training.run_config import RunConfig

NAME = "config"

flags.disclaim_key_flags()  # So that --help of a command lists it.


class CompleteConfig(flags.ArgumentParser):
  """Loads a config and adds the defaults that its file leaves out.

  ml_collections sets keys that a config has, and no others.
  """

  def __init__(self, files: flags.ArgumentParser):
    self._files = files

  def parse(self, path: str) -> Any:
    config = self._files.parse(path)
    if not isinstance(config, ConfigDict):
      return config  # Of a file that cannot be read; using it says so.
    return schema.complete(RunConfig, config)

  def flag_type(self) -> str:
    return self._files.flag_type()


def define(example: str, flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --config.

  Args:
    example: of its value, for the help.
    flag_values: that it is added to.
  """
  text = f"Config file, e.g. {example}"
  config_flags.DEFINE_config_file(NAME, None, text, flag_values)
  flag = flag_values[NAME]
  flag.parser = CompleteConfig(flag.parser)
