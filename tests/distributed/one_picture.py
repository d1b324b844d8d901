"""Draws one picture of 16,384 tokens on the mesh given as arguments.

Writes its latents to the file named first. The network is random, and guided.
"""

import json
import sys

import jax
import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.model.network import Network
from lumina_jax.parallel.mesh import MeshConfig, make_mesh
from lumina_jax.parallel.placement import place
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling.program import SamplingConfig

MODEL = ModelConfig(
  patch=(2, 2), channels=1, width=32, depth=2, heads=4, kv_heads=2,
  cond_width=16, text_width=16, ffn_multiple=16, raster=False,
  separators=False, sandwich=True, shift=False, tanh_gate=True, dtype="float32",
)  # fmt: skip
SAMPLING = SamplingConfig(
  solver="euler", num_inference_steps=2, guidance_scale=2.0, shift=1.0,
  size_rule="fixed", height=256, width=256, ladder=((16_384, 8, 1),), rows=1,
)  # fmt: skip


def pipeline(
  degrees: dict[str, int], sampling: SamplingConfig = SAMPLING
) -> LuminaPipeline:
  """The same random network on any mesh."""
  mesh = make_mesh(MeshConfig(**{"data": 1} | degrees))
  text = Utf8Config(width=16, byte_width=8, word_bytes=8, max_words=8)
  network = Network(MODEL, text)
  rng = np.random.default_rng(0)
  host = jax.tree.map(
    lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), network.shapes()
  )

  def read(path, dtype):
    found = host
    for name in path:
      found = found[name]
    return found.astype(dtype)

  boxed = jax.eval_shape(network.init, jax.random.key(0))
  params = place(read, boxed, np.float32, mesh)
  return LuminaPipeline(network, params, sampling, mesh=mesh)


def parse(words: tuple[str, ...]) -> dict[str, int]:
  """Degrees of a mesh, as data=2."""
  return {k: int(v) for k, v in (word.split("=") for word in words)}


def main(file: str, *degrees: str) -> None:
  pipe = pipeline(parse(degrees))
  (latents,) = pipe("a cat", output_type="latent").images
  np.save(file, latents)
  query = pipe.params["backbone"]["blocks"]["attention"]["query"]["kernel"]
  parts = len({str(s.index) for s in query.addressable_shards})
  print(json.dumps({"devices": pipe.mesh.size, "parts": parts}))


if __name__ == "__main__":
  main(*sys.argv[1:])
