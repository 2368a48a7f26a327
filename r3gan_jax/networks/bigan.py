"""The networks of BiGAN for small images (Donahue et al. 2017, arXiv 1605.09782, appendix C.1): three perceptrons.

Dense layers have no biases and are initially N(0, 0.02^2); batch norm has neither scale nor bias. z joins the features
of images as the sum of two layers. Pixels are in [0, 1].
"""

import jax
from flax import linen as nn

from r3gan_jax.networks.layers import LEAKY_SLOPE, BatchNorm, normal_init


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, use_bias=False, kernel_init=normal_init, name=name)


class Generator(nn.Module):
  """Maps codes to pixels.

  Attributes:
    width: width of both hidden layers.
    pixels: number of values of an image.
    axis_name: the mesh axis over which a batch is sharded.
  """

  width: int
  pixels: int
  axis_name: str

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    """[N, noise_dim] -> [N, pixels]."""
    x = nn.relu(BatchNorm(self.axis_name, affine=False, name="norm_0")(_dense(self.width, "linear_0")(z), train))
    x = _dense(self.width, "linear_1")(x) + _dense(self.width, "linear_1_of_z")(z)
    x = nn.relu(BatchNorm(self.axis_name, affine=False, name="norm_1")(x, train))
    return nn.sigmoid(_dense(self.pixels, "linear_2")(x))


class Encoder(nn.Module):
  """Maps pixels to codes in [-1, 1]. Attributes as in `Generator`; `noise_dim` is the length of a code."""

  width: int
  noise_dim: int
  axis_name: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, pixels] -> [N, noise_dim]."""
    x = nn.leaky_relu(_dense(self.width, "linear_0")(x), LEAKY_SLOPE)
    x = BatchNorm(self.axis_name, affine=False, name="norm_1")(_dense(self.width, "linear_1")(x), train)
    return 2 * nn.sigmoid(_dense(self.noise_dim, "linear_2")(nn.leaky_relu(x, LEAKY_SLOPE))) - 1


class Discriminator(nn.Module):
  """Maps pairs of pixels and code to logits. Attributes as in `Generator`."""

  width: int
  axis_name: str

  couples_samples = True  # through batch norm's moments

  @nn.compact
  def __call__(self, x: jax.Array, z: jax.Array, train: bool) -> jax.Array:
    """[N, pixels], [N, noise_dim] -> [N]."""
    x = nn.leaky_relu(_dense(self.width, "linear_0")(x), LEAKY_SLOPE)
    x = _dense(self.width, "linear_1")(x) + _dense(self.width, "linear_1_of_z")(z)
    x = nn.leaky_relu(BatchNorm(self.axis_name, affine=False, name="norm_1")(x, train), LEAKY_SLOPE)
    return _dense(1, "linear_2")(x)[:, 0]
