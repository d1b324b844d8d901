"""The commands, with radar in the tables: python lumina.py train ..."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[3]


def register():
  """Adds radar to the tables of media, codecs and data."""
  from support.radar import codec, data, medium

  from lumina_jax import media
  from lumina_jax.pretrained import codecs
  from lumina_jax.training.run_config import RunConfig

  media.MEDIA["radar"] = medium.RADAR
  codecs.FORMATS["Dct"] = codecs.Format(codec.DctConfig, codec.load, codec.save)
  # As if DataConfig listed it.
  RunConfig.__annotations__["data"] |= data.RadarConfig


if __name__ == "__main__":
  sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
  register()
  from lumina_jax import cli

  cli.main()
