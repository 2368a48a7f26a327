from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r3gan_jax.ops.images import to_float, to_uint8


def test_every_byte_survives_the_round_trip():
  values = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal(to_uint8(to_float(values)), values)


def test_range_and_truncation():
  np.testing.assert_allclose(to_float(jnp.array([0, 255], jnp.uint8)), [-1, 1])
  np.testing.assert_allclose(
    to_float(jnp.array([0, 16384, 65535], jnp.uint16)), [-1, 16384 / 32767.5 - 1, 1], atol=1e-7
  )
  images = jnp.array([-2.0, -1.0, 0.0, 0.999 / 127.5, 1.0, 2.0])
  np.testing.assert_array_equal(to_uint8(images), [0, 0, 128, 128, 255, 255])


@pytest.mark.parametrize("dtype, recorded", [(jnp.float32, "uint8_of_float"), (jnp.bfloat16, "uint8")])
def test_bytes_of_the_official_bfloat16_generator(dtype, recorded):
  """Compiled, where XLA may elide casts; the images are bfloat16 values stored as float32."""
  with np.load(Path(__file__).parent.parent / "golden" / "r3gan_bfloat16_cond_32px.npz") as golden:
    images, expected, in_float32 = (golden[f"bf16/{name}"] for name in ("fake", recorded, "uint8_of_float"))
  ours = np.asarray(jax.jit(lambda images: to_uint8(images, dtype))(images))
  np.testing.assert_array_equal(ours, expected)
  levels = ours.astype(int) - in_float32
  assert set(np.unique(levels)) <= {0, 1}
  assert levels.mean() == pytest.approx(0.409 if dtype == jnp.bfloat16 else 0, abs=1e-3)


def test_floats_pass_through():
  images = jnp.array([-0.3, 0.7])
  assert to_float(images) is images
