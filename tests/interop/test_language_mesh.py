"""A language model over eight devices computes what it does on one."""

import json
import subprocess
import sys

import numpy as np
import pytest
from support.configs import ROOT, fake_devices
from support.language_folder import LLAMA, tensors, write

from lumina_jax.encoders.language import encode_tokens
from lumina_jax.interop.language import load_language

CODE = """
import json, sys
import jax, numpy as np
from lumina_jax.encoders.caption_encoder import CaptionEncoder
from lumina_jax.encoders.language import encode_tokens
from lumina_jax.interop.language import load_language
from lumina_jax.parallel.mesh import MeshConfig, make_mesh

class Numbers:
  identity = ""
  check = lambda self, vocab: None
  __call__ = lambda self, text: np.array([int(x) for x in text.split()])

mesh = make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))
cfg, params = load_language(sys.argv[1], "last", "float32", mesh)
rows = np.load(sys.argv[2])
with jax.set_mesh(mesh):
  features = encode_tokens(cfg, params, *rows)
(alone,) = CaptionEncoder(cfg, Numbers(), lambda: params).encode(["3 1 4 1 5"])
np.savez(sys.argv[3], features=features, alone=alone)
shards = {
  jax.tree_util.keystr(path, simple=True, separator="/"): len(
    {str(s.index) for s in x.addressable_shards}
  )
  for path, x in jax.tree_util.tree_leaves_with_path(params)
}
try:
  load_language(sys.argv[1], "last", "float32",
                make_mesh(MeshConfig(data=1, fsdp=1, tensor=8)))
except ValueError as error:
  shards["error"] = str(error)
print(json.dumps(shards))
"""


@pytest.mark.e2e
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_eight_devices_give_the_same_features(tmp_path, kv_heads):
  config = LLAMA | {"num_key_value_heads": kv_heads}
  folder = write(tmp_path / "model", tensors(kv_heads=kv_heads), config)
  rows = np.array(
    [
      [[3, 1, 4, 1, 5, 0, 0, 0], [9, 2, 6, 5, 3, 5, 8, 9]],
      [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 2, 2, 2, 2, 2]],
    ],
    np.int32,
  )
  np.save(tmp_path / "rows.npy", rows)
  args = [folder, tmp_path / "rows.npy", tmp_path / "out.npz"]
  done = subprocess.run(
    [sys.executable, "-c", CODE, *map(str, args)],
    cwd=ROOT,
    env=fake_devices(8),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  # The compiler found a direct path between any two shardings.
  assert "Involuntary" not in done.stderr
  cfg, params = load_language(folder, "last", "float32")
  expected = np.asarray(encode_tokens(cfg, params, *rows))
  found = np.load(tmp_path / "out.npz")
  np.testing.assert_allclose(found["features"], expected, atol=2e-5)
  np.testing.assert_allclose(found["alone"], expected[0, :5], atol=2e-5)
  shards = json.loads(done.stdout.splitlines()[-1])
  # Over fsdp and context, and over tensor unless there is only one head.
  assert shards["embed"] == shards["blocks/attention/query/kernel"] == 8
  assert shards["blocks/feed_forward/down/kernel"] == 8
  assert shards["blocks/attention/key/kernel"] == (8 if kv_heads == 2 else 4)
  assert "does not divide over ('tensor',) = 8" in shards["error"]
