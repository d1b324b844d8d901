"""A pipeline sharded over eight devices; run by test_sharded_pipeline."""

import sys

import numpy as np

from lumina_jax import LuminaPipeline
from lumina_jax.parallel.mesh import MeshConfig, make_mesh


def main(folder: str, found: str) -> None:
  mesh = make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
  pipe = LuminaPipeline.from_pretrained(folder, mesh=mesh, dtype="float32")
  kernel = pipe.params["backbone"]["blocks"]["feed_forward"]["gate"]["kernel"]
  assert len(kernel.sharding.device_set) == 8
  shard = kernel.addressable_shards[0].data
  assert shard.size * 8 == kernel.size, (shard.shape, kernel.shape)
  (image,) = pipe(
    "fox", seed=1, num_inference_steps=2, output_type="uint8"
  ).images
  np.save(found, image)


if __name__ == "__main__":
  main(*sys.argv[1:])
