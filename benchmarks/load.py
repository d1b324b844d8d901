"""Memory and time of loading a network: python -m benchmarks.load

Writes a random checkpoint of a published size in bfloat16, in the layouts of
diffusers and of the original code, and loads each by
`LuminaPipeline.from_pretrained` as bfloat16, in its own process. On a CPU the
parameters are in the same memory, so the peak is at least their size.
"""

import json
import pathlib
import tempfile

from absl import app, flags

from benchmarks.convert import IDLE, random_weights, run, size
from lumina_jax.backbone import PUBLISHED
from lumina_jax.interop import pytorch_writer
from lumina_jax.pretrained.diffusers import INDEX

LOAD = """
import sys
from lumina_jax import LuminaPipeline
from lumina_jax.parallel import processes
options = dict(dtype="bfloat16", vae=False, text_encoder=False)
pipe = LuminaPipeline.from_pretrained(sys.argv[1], **options)
print(processes.peak_memory())
"""


def main(_) -> None:
  network = flags.FLAGS.network
  with tempfile.TemporaryDirectory(dir=flags.FLAGS.folder) as name:
    diffusers = pathlib.Path(name) / "diffusers"
    original = pathlib.Path(name) / "original"
    diffusers.mkdir()
    index = {"_class_name": "LuminaPipeline"}
    (diffusers / INDEX).write_text(json.dumps(index))
    for folder, layout in (
      (diffusers / "transformer", "diffusers"),
      (original, "lumina"),
    ):
      pytorch_writer.write(random_weights(network), folder, layout, "bfloat16")
    idle = int(run("-c", IDLE)[1])
    print(f"JAX started, nothing loaded: {idle / 1e9:.2f} GB")
    for folder in (diffusers, original):
      seconds, peak = run("-c", LOAD, str(folder))
      nbytes = size(folder)
      print(
        f"{folder.name}: {nbytes / 1e9:.2f} GB on disk, peak "
        f"{int(peak) / 1e9:.2f} GB = {int(peak) / nbytes:.2f} times, "
        f"{seconds:.0f} s",
        flush=True,
      )


if __name__ == "__main__":
  flags.DEFINE_enum(
    "network", "next_dit_t2i_2b_gqa", list(PUBLISHED), "Published size."
  )
  flags.DEFINE_string("folder", None, "Parent of the temporary folder.")
  app.run(main)
