"""Generates two samples, guided for part of the time, on several meshes.

A solver with memory and an adaptive one: the programs hold a branch and a loop.
Arguments: a folder for the latents, then meshes, e.g. "data=2,context=2".
"""

import dataclasses
import json
import pathlib
import sys

import long_sample
import numpy as np

from lumina_jax.sampling.sizes import SizeConfig

OPTIONS = dataclasses.replace(
  long_sample.OPTIONS, num_inference_steps=4, guidance_interval=(0.2, 0.8)
)
# Two rows of 64 tokens, and of 16 in the second.
SIZES = SizeConfig((16, 16), ladder=((64, 8, 1),), rows=2)
SOLVERS = "ab2", "dopri5"


def main(folder: str, *meshes: str) -> None:
  for number, degrees in enumerate(meshes):
    np.savez(pathlib.Path(folder) / f"{number}.npz", **samples(degrees))
  print(json.dumps(len(meshes)))


def samples(degrees: str) -> dict[str, np.ndarray]:
  pipe = long_sample.pipeline(degrees, OPTIONS, SIZES)
  call = dict(height=[16, 8], width=[16, 8], guidance_scale=[4.0, 2.0])
  call["output_type"] = "latent"
  found = {}
  for solver in SOLVERS:
    out = pipe(["a cat", "a"], **call, solver=solver)
    found[solver] = np.concatenate([np.ravel(x) for x in out.samples])
    found[f"{solver} evaluations"] = np.asarray(out.evaluations)
  always = dict(guidance_interval=(0.0, 1.0), solver="ab2")
  out = pipe(["a cat", "a"], **call, **always)
  return found | {"always": np.concatenate([np.ravel(x) for x in out.samples])}


if __name__ == "__main__":
  main(*sys.argv[1:])
