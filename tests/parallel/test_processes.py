"""Facts about this process."""

import numpy as np

from lumina_jax.parallel import processes


def test_peak_memory_outlives_the_arrays():
  array = np.ones(2**26, np.uint8)
  peak = processes.peak_memory()
  assert peak > array.nbytes
  del array
  assert processes.peak_memory() > 0.9 * peak  # The kernel counts in batches.
