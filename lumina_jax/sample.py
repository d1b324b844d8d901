"""Another name of the command `infer`: python -m lumina_jax.sample"""

import sys

from lumina_jax import cli

if __name__ == "__main__":
  cli.run("infer", sys.argv[1:])
