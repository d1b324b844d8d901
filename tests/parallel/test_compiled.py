"""Memory of compiled programs, and compiler errors about it."""

import jax
import jax.numpy as jnp
import pytest

from lumina_jax.parallel.compiled import (
  OutOfMemory,
  compile_program,
  parse_out_of_memory,
)

EARLY = (
  "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
  "HLO temporaries (27.16G) exceeds available HBM (15.75G)."
)
LATE = (
  "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
  "memory space hbm. Used 17.06G of 15.75G hbm. Exceeded hbm capacity by 1.31G."
)
VMEM = (
  "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.00M of "
  "16.00M vmem."
)


GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes"
GIB = 2**30


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    (EARLY, OutOfMemory(round(27.16 * GIB), round(15.75 * GIB))),
    (LATE, OutOfMemory(round(17.06 * GIB), round(15.75 * GIB))),
    (GPU, OutOfMemory(123, 0)),
    (VMEM, None),
    ("INVALID_ARGUMENT: no", None),
    ("", None),
  ],
)
def test_errors_about_device_memory_are_parsed(message, expected):
  assert parse_out_of_memory(message) == expected


def test_other_compiler_errors_are_raised():
  class Broken:
    def compile(self):
      raise jax.errors.JaxRuntimeError(VMEM)

  with pytest.raises(jax.errors.JaxRuntimeError, match="memory space vmem"):
    compile_program(Broken(), jax.devices()[:1])


def test_the_peak_counts_arguments_results_and_temporaries():
  def program(x):
    return jnp.sort(jnp.sort(x @ x, axis=0) @ x, axis=1)

  x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
  found = compile_program(jax.jit(program).lower(x), jax.devices()[:1])
  mib = 2**20
  assert found.arguments == mib
  assert 3 * mib <= found.peak <= 8 * mib
  assert (found.sent, found.kernels) == (0, 0)
