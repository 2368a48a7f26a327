"""The networks of LAPGAN (Denton et al. 2015, arXiv 1506.05751): perceptrons at the coarsest level, convolutions above.

All take the coarse image of their level, [N, H, W, C], which is 0 at the coarsest: G draws a residual for it, and D
judges a residual by its *sum* with it. Outputs are linear, hidden layers ReLU, and weights are initially N(0, 0.02^2)
(the paper leaves it open). Every level has networks of its own, so parameter names do not contain the resolution.

With classes, one-hot, the perceptrons get them beside their other inputs, and the convolutions as one more plane.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import dropout, normal_init
from r3gan_jax.ops.grouped_conv import grouped_conv
from r3gan_jax.ops.strided_conv import strided_conv


class _Conv(nn.Module):
  """A convolution with a bias.

  Attributes:
    features: channels of the result.
    kernel_size: an odd number.
    padding: of all sides, with zeros.
    strided: whether its stride is 2.
  """

  features: int
  kernel_size: int
  padding: int = 0
  strided: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, ..., features]."""
    kernel = self.param("kernel", normal_init, (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
    both = (self.padding, self.padding)
    x = strided_conv(x, kernel, both) if self.strided else grouped_conv(x, kernel, groups=1, padding=(both, both))
    return x + self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None]


class _Perceptron(nn.Module):
  """Dense layers of `units` units, each followed by ReLU and dropout, and a linear one."""

  units: tuple[int, ...]
  outputs: int
  keep: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """[N, F], keys [N] for dropout or None -> [N, outputs]."""
    for layer, units in enumerate(self.units):
      x = nn.relu(nn.Dense(units, kernel_init=normal_init, name=f"linear_{layer}")(x))
      x = dropout(x, keys, layer, self.keep)
    return nn.Dense(self.outputs, kernel_init=normal_init, name="linear")(x)


class CoarsestGenerator(nn.Module):
  """Maps noise to the coarsest images; `units`: of its hidden layers."""

  units: tuple[int, ...]

  @nn.compact
  def __call__(self, z: jax.Array, coarse: jax.Array, classes: jax.Array | None) -> jax.Array:
    """[N, noise_dim], [N, H, W, C] that only gives the shape, [N, K] or None -> [N, H, W, C]."""
    outputs = coarse[0].size
    return _Perceptron(self.units, outputs, name="layers")(_beside(z, classes)).reshape(-1, *coarse.shape[1:])


class CoarsestDiscriminator(nn.Module):
  """Maps the coarsest images to logits.

  Attributes:
    units: of the hidden layers.
    keep: the probability of keeping a feature, after each hidden layer.
  """

  units: tuple[int, ...]
  keep: float

  @nn.compact
  def __call__(
    self, residual: jax.Array, coarse: jax.Array, classes: jax.Array | None, keys: jax.Array | None
  ) -> jax.Array:
    """Two of [N, H, W, C], [N, K] or None, keys [N] for dropout or None -> [N]."""
    pixels = (residual + coarse).reshape(residual.shape[0], -1)
    return _Perceptron(self.units, 1, self.keep, name="layers")(_beside(pixels, classes), keys)[:, 0]


class Generator(nn.Module):
  """Maps a plane of noise and a coarse image to a residual; `width`: channels of its hidden layers."""

  width: int

  @nn.compact
  def __call__(self, z: jax.Array, coarse: jax.Array, classes: jax.Array | None) -> jax.Array:
    """[N, H W], [N, H, W, C], [N, K] or None -> [N, H, W, C]."""
    noise = z.reshape(-1, *coarse.shape[1:3], 1)
    x = jnp.concatenate([noise, *_class_plane(classes, coarse), coarse], axis=3)
    x = nn.relu(_Conv(self.width, 7, padding=3, name="conv_0")(x))
    x = nn.relu(_Conv(self.width, 7, padding=3, name="conv_1")(x))
    return _Conv(coarse.shape[-1], 5, padding=2, name="to_residual")(x)


class Discriminator(nn.Module):
  """Maps residuals and coarse images to logits, by convolutions without padding.

  Kernels are 5x5; for images smaller than 10x10, which the paper has not, 3x3.

  Attributes:
    width: channels of the hidden layers.
    keep: the probability of keeping a feature, before the last layer.
  """

  width: int
  keep: float

  @nn.compact
  def __call__(
    self, residual: jax.Array, coarse: jax.Array, classes: jax.Array | None, keys: jax.Array | None
  ) -> jax.Array:
    """Two of [N, H, W, C], [N, K] or None, keys [N] for dropout or None -> [N]."""
    x = jnp.concatenate([*_class_plane(classes, coarse), residual + coarse], axis=3)
    kernel_size = 5 if x.shape[1] >= 10 else 3
    x = nn.relu(_Conv(self.width, kernel_size, name="conv_0")(x))
    x = nn.relu(_Conv(self.width, kernel_size, strided=True, name="conv_1")(x))
    x = dropout(x.reshape(x.shape[0], -1), keys, 0, self.keep)
    return nn.Dense(1, kernel_init=normal_init, name="linear")(x)[:, 0]


def _beside(x: jax.Array, classes: jax.Array | None) -> jax.Array:
  return x if classes is None else jnp.concatenate([x, classes], axis=1)


def _class_plane(classes: jax.Array | None, coarse: jax.Array) -> list[jax.Array]:
  """Returns one plane of the size of `coarse`, [N, H, W, 1], or none; called in compact methods."""
  if classes is None:
    return []
  height, width = coarse.shape[1:3]
  plane = nn.relu(nn.Dense(height * width, kernel_init=normal_init, name="class_plane")(classes))
  return [plane.reshape(-1, height, width, 1)]
