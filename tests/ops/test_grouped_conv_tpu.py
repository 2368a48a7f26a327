"""The Pallas TPU kernels, emulated on the CPU, against XLA's own grouped convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from r3gan_jax.ops import grouped_conv_tiling, grouped_conv_tpu

SAME = ((1, 1), (1, 1))
# images, groups, inputs per group, outputs per group, kernel, padding, dtype
CASES = {
  "one block of few lanes": (2, 4, 3, 5, (3, 3), SAME, jnp.float32),
  "two blocks of 128 lanes": (1, 16, 16, 16, (3, 3), SAME, jnp.bfloat16),
  "even kernel, uneven padding": (1, 2, 2, 2, (4, 2), ((0, 4), (2, 1)), jnp.float32),
  "no padding": (1, 1, 2, 2, (3, 2), ((0, 0), (0, 0)), jnp.float32),
  "two batch tiles": (16, 2, 2, 2, (1, 3), ((0, 0), (1, 1)), jnp.float32),
}


def operands(images, groups, inputs, outputs, kernel_size, padding, dtype):
  x_key, kernel_key, dy_key = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(x_key, (images, 6, 5, groups * inputs), dtype)
  kernel = jax.random.normal(kernel_key, (*kernel_size, inputs, groups * outputs), dtype)
  out_size = [n + sum(pad) - k + 1 for n, pad, k in zip((6, 5), padding, kernel_size, strict=True)]
  return x, kernel, jax.random.normal(dy_key, (images, *out_size, groups * outputs), dtype)


def expected(x, kernel, dy, groups, padding):
  """Computes the two operations with XLA, in float32."""
  x, kernel, dy = (a.astype(jnp.float32) for a in (x, kernel, dy))

  def conv(kernel):
    return lax.conv_general_dilated(
      x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )

  out, vjp = jax.vjp(conv, kernel)
  return out, *vjp(dy)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_weight_gradients(case):
  check(*case)


def test_images_that_do_not_fit_are_cut_into_rows(monkeypatch):
  monkeypatch.setattr(grouped_conv_tiling, "VMEM_BYTES", 0)
  check(*CASES["even kernel, uneven padding"])


def check(*case):
  *_, groups, _, _, kernel_size, padding, dtype = case
  x, kernel, dy = operands(*case)
  out, gradient = expected(x, kernel, dy, groups, padding)
  conv = grouped_conv_tpu.conv(x, kernel, groups=groups, padding=padding, interpret=True)
  weights = grouped_conv_tpu.weight_gradient(
    x, dy, groups=groups, padding=padding, kernel_size=kernel_size, interpret=True
  )
  tolerance = {jnp.float32: 2e-6, jnp.bfloat16: 5e-3}[dtype]
  for actual, wanted in ((conv, out), (weights, gradient)):
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual.astype(jnp.float32), wanted, atol=tolerance * np.abs(wanted).max())
