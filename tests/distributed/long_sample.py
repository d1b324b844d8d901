"""Generates one sample of 16,384 tokens on one device and on a mesh.

The network is random, and guided. Arguments: a folder for the latents, then
meshes, e.g. "fsdp=2,context=4".
"""

import json
import pathlib
import sys

import jax
import numpy as np

from lumina_jax.backbone import ModelConfig
from lumina_jax.encoders.utf8 import Utf8Config
from lumina_jax.media import IMAGE
from lumina_jax.model.network import Network
from lumina_jax.model.offload import Offloadable
from lumina_jax.parallel.mesh import make_mesh, parse_mesh
from lumina_jax.parallel.placement import place
from lumina_jax.pipeline import LuminaPipeline
from lumina_jax.sampling.components import Components
from lumina_jax.sampling.options import SamplingOptions
from lumina_jax.sampling.sizes import SizeConfig

MODEL = ModelConfig(
  patch=(2, 2), channels=1, width=32, depth=2, heads=4, kv_heads=2,
  cond_width=16, text_width=16, ffn_multiple=16, raster=False,
  separators=False, sandwich=True, shift=False, tanh_gate=True, pad_token=True,
  dtype="float32",
)  # fmt: skip
OPTIONS = SamplingOptions(
  solver="euler", num_inference_steps=2, guidance_scale=2.0, shift=1.0
)
SIZES = SizeConfig((256, 256), ladder=((16_384, 8, 1),))


def pipeline(
  degrees: str, options: SamplingOptions = OPTIONS, sizes: SizeConfig = SIZES
) -> LuminaPipeline:
  """The same random network on any mesh."""
  cfg = parse_mesh(degrees)
  size = cfg.data * cfg.fsdp * cfg.context * cfg.tensor
  mesh = make_mesh(cfg, jax.devices()[:size])
  text = Utf8Config(width=16, byte_width=8, word_bytes=8, max_words=8)
  network = Network(MODEL, text)
  rng = np.random.default_rng(0)
  host = jax.tree.map(
    lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), network.shapes()
  )

  def read(path, dtype):
    leaf = host
    for name in path:
      leaf = leaf[name]
    return leaf.astype(dtype)

  boxed = jax.eval_shape(network.init, jax.random.key(0))
  weights = Offloadable.pinned(place(read, boxed, np.float32, mesh))
  return LuminaPipeline(
    Components(IMAGE, network, weights, options, sizes, mesh=mesh)
  )


def main(folder: str, *meshes: str) -> None:
  results = []
  for number, degrees in enumerate(meshes):
    pipe = pipeline(degrees)
    (latents,) = pipe("a cat", output_type="latent").samples
    np.save(pathlib.Path(folder) / f"{number}.npy", latents)
    query = pipe.params["backbone"]["blocks"]["attention"]["query"]["kernel"]
    shards = len({str(s.index) for s in query.addressable_shards})
    results.append({"devices": pipe.components.mesh.size, "shards": shards})
  print(json.dumps(results))


if __name__ == "__main__":
  main(*sys.argv[1:])
