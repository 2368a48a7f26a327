"""The head that projects D's features for their alignment with a pretrained network's: losses/pretrained.py."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import LEAKY_GAIN, PointwiseConv, bias_activate, full_precision, pointwise, scaled_normal


class AlignmentHead(nn.Module):
  """Computes linear(mean over places of LeakyReLU(conv1x1(x) + b)).

  The features are pooled because D sees *augmented* images, whose places are not those of the image itself, and because
  the pretrained networks here have one vector per image.

  Attributes:
    features: length of the pretrained network's features.
  """

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, h, w, C] of any float dtype -> [N, features] in full precision."""
    x = x.astype(full_precision())
    width = x.shape[-1]
    kernel = self.param("kernel", scaled_normal(LEAKY_GAIN, fan_in=width), (width, width))
    bias = self.param("bias", nn.initializers.zeros, (width,))
    x = bias_activate(pointwise(x, kernel), bias, None)
    return PointwiseConv(self.features, name="output")(jnp.mean(x, axis=(1, 2)))
