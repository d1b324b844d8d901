"""Memory of compiled programs, and what compilers say when it is short."""

import jax
import jax.numpy as jnp
import pytest

from lumina_jax.parallel.compiled import TooLarge, compile_program, too_large

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


@pytest.mark.parametrize(("message", "needed"), [(EARLY, 27.16), (LATE, 17.06)])
def test_what_libtpu_says_of_hbm(message, needed):
  gib = 2**30
  assert too_large(message) == TooLarge(round(needed * gib), round(15.75 * gib))


def test_what_a_gpu_says():
  message = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes"
  )
  assert too_large(message) == TooLarge(123, 0)


@pytest.mark.parametrize("message", [VMEM, "INVALID_ARGUMENT: no", ""])
def test_other_errors_are_not_about_hbm(message):
  assert too_large(message) is None


def test_they_surface_whole():
  class Broken:
    def compile(self):
      raise jax.errors.JaxRuntimeError(VMEM)

  with pytest.raises(jax.errors.JaxRuntimeError, match="memory space vmem"):
    compile_program(Broken(), jax.devices()[:1])


def test_the_peak_counts_arguments_results_and_what_lies_between():
  def program(x):
    return jnp.sort(jnp.sort(x @ x, axis=0) @ x, axis=1)

  x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
  found = compile_program(jax.jit(program).lower(x), jax.devices()[:1])
  mib = 2**20
  assert found.arguments == mib
  assert 3 * mib <= found.peak <= 8 * mib
  assert (found.sent, found.kernels) == (0, 0)
