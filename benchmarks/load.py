"""Memory and time of loading a network: python -m benchmarks.load

Writes a random checkpoint of a published size in bfloat16, as diffusers and as
the original code have it, and loads each into bfloat16 parameters by
`LuminaPipeline.from_pretrained`, in a process of its own. On a CPU the host's
memory holds the parameters too, so the least possible peak is their size.
"""

from __future__ import annotations

import json
import pathlib
import tempfile

from absl import app, flags

from benchmarks.convert import IDLE, Random, run, size
from lumina_jax.backbone import PUBLISHED
from lumina_jax.interop import pytorch_writer
from lumina_jax.pretrained.diffusers import INDEX

LOAD = """
import sys
from lumina_jax import LuminaPipeline, convert
options = dict(dtype="bfloat16", vae=False, text_encoder=False)
pipe = LuminaPipeline.from_pretrained(sys.argv[1], **options)
print(convert.peak_memory())
"""


def main(_) -> None:
  network = flags.FLAGS.network
  with tempfile.TemporaryDirectory(dir=flags.FLAGS.folder) as name:
    folders = pathlib.Path(name) / "diffusers", pathlib.Path(name) / "original"
    folders[0].mkdir()
    pytorch_writer.write(
      Random(network), folders[0] / "transformer", "diffusers", "bfloat16"
    )
    index = {"_class_name": "LuminaPipeline"}
    (folders[0] / INDEX).write_text(json.dumps(index))
    pytorch_writer.write(Random(network), folders[1], "lumina", "bfloat16")
    idle = int(run("-c", IDLE)[1])
    print(f"JAX started, nothing loaded: {idle / 1e9:.2f} GB")
    for folder in folders:
      seconds, peak = run("-c", LOAD, str(folder))
      nbytes = size(folder)
      print(
        f"{folder.name}: {nbytes / 1e9:.2f} GB on the disk, peak "
        f"{int(peak) / 1e9:.2f} GB = {int(peak) / nbytes:.2f} times, "
        f"{seconds:.0f} s",
        flush=True,
      )


if __name__ == "__main__":
  flags.DEFINE_enum(
    "network", "next_dit_t2i_2b_gqa", list(PUBLISHED), "Which size."
  )
  flags.DEFINE_string("folder", None, "Where to write; default: temporary.")
  app.run(main)
