"""Samples digits on all devices of all processes; each writes its results.

Argument: the folder to write to. Prints, as JSON, the number of processes and
devices.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from support.configs import randomised, small_config

from lumina_jax.model.offload import Offloadable
from lumina_jax.parallel import processes
from lumina_jax.parallel.placement import place
from lumina_jax.pipeline import LuminaPipeline

PROMPTS = ["3", "1 4", "five / two", "7 7 7"]


def main(folder: str) -> None:
  processes.initialize()
  config, mesh = small_config("next"), processes.data_parallel_mesh()
  host = randomised(config).params

  def read(path, dtype):
    leaf = host
    for name in path:
      leaf = leaf[name]
    return leaf.astype(dtype)

  boxed = jax.eval_shape(config.network.init, jax.random.key(0))
  params = place(read, boxed, np.dtype(np.float32), mesh)
  weights = Offloadable.pinned(params)
  pipe = LuminaPipeline(config.components(weights, mesh=mesh))
  call = dict(guidance_scale=2.0, output_type="latent")
  samples = {"all": pipe(PROMPTS, **call).samples}
  times = []

  def callback(step, time, latents):
    times.append(time)
    return [0.5 * x for x in latents] if step == 0 else None

  samples["steps"] = pipe(PROMPTS[1], **call, callback=callback).samples
  number = jax.process_index()
  np.savez(
    pathlib.Path(folder) / f"process_{number}.npz",
    times=np.asarray(times),
    **{f"{k}_{i}": x for k, v in samples.items() for i, x in enumerate(v)},
  )
  devices = len(jax.tree.leaves(params)[0].sharding.device_set)
  print(json.dumps({"processes": processes.count(), "devices": devices}))
  processes.finish()


if __name__ == "__main__":
  main(*sys.argv[1:])
