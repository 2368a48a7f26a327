"""The emulated TPU resampling kernels against the portable implementation."""

import jax
import numpy as np
import pytest

from r3gan_jax.ops import resample, resample_tpu


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 8, 8, 256)])
def test_kernels(shape):
  x = jax.random.normal(jax.random.key(0), shape)
  up = jax.jit(lambda x: resample_tpu.upsample2x(x, scale=2.0, interpret=True))
  np.testing.assert_allclose(up(x), 2 * resample.upsample2x(x), atol=1e-5)
  down = jax.jit(lambda x: resample_tpu.downsample2x(x, scale=2.0, interpret=True))
  np.testing.assert_allclose(down(x), 2 * resample.downsample2x(x), atol=1e-5)
