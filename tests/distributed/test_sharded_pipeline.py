"""A pipeline that from_pretrained shards over devices."""

import numpy as np
import pytest
from support.fake_devices import SCRIPTS, run

from lumina_jax import LuminaPipeline

pytestmark = pytest.mark.e2e


def test_a_sharded_pipeline_generates_the_same(diffusers_folder, tmp_path):
  found = tmp_path / "found.npy"
  run(8, SCRIPTS / "sharded_pipeline.py", diffusers_folder, found)
  pipe = LuminaPipeline.from_pretrained(diffusers_folder, dtype="float32")
  (expected,) = pipe(
    "fox", seed=1, num_inference_steps=2, output_type="uint8"
  ).images
  difference = np.load(found).astype(int) - expected
  assert np.abs(difference).max() <= 1
