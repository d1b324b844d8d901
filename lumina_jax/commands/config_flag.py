"""The flag --config, and --config.section.key=value for every key of it."""

from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lumina_jax.files import schema
from lumina_jax.training.run_config import RunConfig

NAME = "config"

flags.disclaim_key_flags()  # --help of a command lists it as its own.


class CompleteConfig(flags.ArgumentParser):
  """Loads a config and adds the defaults that its file leaves out.

  ml_collections only overrides keys that a config has.
  """

  def __init__(self, files: flags.ArgumentParser):
    self._files = files

  def parse(self, path: str) -> Any:
    config = self._files.parse(path)
    if not isinstance(config, ConfigDict):
      return config  # The file cannot be read; its use raises the error.
    return schema.complete(RunConfig, config)

  def flag_type(self) -> str:
    return self._files.flag_type()


def define(example: str, flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --config.

  Args:
    example: of its value, for the help.
    flag_values: to add the flag to.
  """
  text = f"Config file, e.g. {example}"
  config_flags.DEFINE_config_file(NAME, None, text, flag_values)
  flag = flag_values[NAME]
  flag.parser = CompleteConfig(flag.parser)
