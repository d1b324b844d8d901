"""Another name of the command `infer`: python -m lumina_jax.sample"""

from lumina_jax.infer import run

if __name__ == "__main__":
  run()
