"""Draws two pictures, guided for part of the time, on the mesh given.

By a solver that remembers and by one that chooses its steps: the programs hold
a branch and a loop. Writes their latents to the file named first.
"""

import dataclasses
import json
import sys

import numpy as np
import one_picture

# Two rows of 64 tokens, and of 16 in the second.
SAMPLING = dataclasses.replace(
  one_picture.SAMPLING,
  num_inference_steps=4,
  guidance_interval=(0.2, 0.8),
  ladder=((64, 8, 1),),
  rows=2,
)
SOLVERS = "ab2", "dopri5"


def main(file: str, *degrees: str) -> None:
  pipe = one_picture.pipeline(one_picture.parse(degrees), SAMPLING)
  call = dict(height=[16, 8], width=[16, 8], guidance_scale=[4.0, 2.0])
  found = {}
  for solver in SOLVERS:
    out = pipe(["a cat", "a"], **call, solver=solver, output_type="latent")
    found[solver] = np.concatenate([np.ravel(x) for x in out.images])
    found[f"{solver} evaluations"] = np.asarray(out.evaluations)
  always = dict(guidance_interval=(0.0, 1.0), output_type="latent")
  out = pipe(["a cat", "a"], **call, solver="ab2", **always)
  found["always"] = np.concatenate([np.ravel(x) for x in out.images])
  np.savez(file, **found)
  print(json.dumps({"devices": pipe.mesh.size}))


if __name__ == "__main__":
  main(*sys.argv[1:])
