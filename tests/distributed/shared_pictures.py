"""Draws digits on all devices of all processes; each writes what it was given.

Arguments: the folder to write to and, for one of several processes,
"process=1 of=2 port=12345". Prints, as JSON, where rows lay.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from support.configs import randomised, small_config

from lumina_jax.parallel import processes
from lumina_jax.parallel.placement import place
from lumina_jax.pipeline import LuminaPipeline

PROMPTS = ["3", "1 4", "five / two", "7 7 7"]


def main(folder: str, *words: str) -> None:
  said = dict(word.split("=") for word in words)
  if said:
    where, of = f"localhost:{said['port']}", int(said["of"])
    processes.start(where, of, int(said["process"]))
  config = small_config("next")
  host = randomised(config).params

  def read(path, dtype):
    found = host
    for name in path:
      found = found[name]
    return found.astype(dtype)

  network, mesh = config.network, processes.everywhere()
  boxed = jax.eval_shape(network.init, jax.random.key(0))
  params = place(read, boxed, np.dtype(np.float32), mesh)
  pipe = LuminaPipeline(network, params, config.sampling, mesh=mesh)
  call = dict(guidance_scale=2.0, output_type="latent")
  drawn = {"all": pipe(PROMPTS, **call).images}
  seen = []

  def watch(step, time, latents):
    seen.append(time)
    return [0.5 * x for x in latents] if step == 0 else None

  drawn["steps"] = pipe(PROMPTS[1], **call, callback=watch).images
  drawn["chosen"] = pipe(PROMPTS[:2], **call, solver="dopri5").images
  number = jax.process_index()
  np.savez(
    pathlib.Path(folder) / f"process_{number}.npz",
    times=np.asarray(seen),
    **{f"{k}_{i}": x for k, v in drawn.items() for i, x in enumerate(v)},
  )
  leaf = jax.tree.leaves(params)[0]
  print(json.dumps({
    "processes": processes.count(), "devices": len(leaf.sharding.device_set),
  }))  # fmt: skip
  processes.finish()


if __name__ == "__main__":
  main(*sys.argv[1:])
