"""Layers of networks that are published: their numbers are in float32, unlike accelerators' default for products."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from r3gan_jax.ops.grouped_conv import grouped_conv

PRECISION = jax.lax.Precision.HIGHEST
"""The precision of products in published networks."""


def _conv_general_dilated(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Any, **options: Any
) -> jax.Array:
  """Computes `lax.conv_general_dilated`; at stride 1 on CPUs by our own convolution, because XLA's is slow."""

  def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)

  if strides != (1, 1):
    return plain(x, kernel)
  vertical, horizontal = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
  ours = partial(grouped_conv, groups=1, padding=(vertical, horizontal))
  return lax.platform_dependent(x, kernel, cpu=ours, default=plain)


Conv = partial(nn.Conv, precision=PRECISION, conv_general_dilated=_conv_general_dilated)
"""The convolution of published networks."""
