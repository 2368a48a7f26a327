"""The networks of DCGAN (Radford et al. 2016, arXiv 1511.06434, figure 1 and section 3).

Strided convolutions; batch norm after every layer but G's last and D's first; ReLU in G and LeakyReLU in D. Weights
are initially N(0, 0.02^2), batch norm's scales N(1, 0.02^2). `widths` lists the channels of both networks from the
lowest stage upward, one per doubling of the resolution; parameter names contain the resolution.
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from r3gan_jax.networks.layers import LEAKY_SLOPE, BatchNorm, StridedConv, TransposedConv, normal_init


class Generator(nn.Module):
  """Maps noise to images of side `lowest` * 2^len(widths).

  Attributes:
    widths: channels at 4x4 (or `lowest`), 8x8, ..., up to half the images' side.
    axis_name: the mesh axis over which a batch is sharded.
    image_channels: channels of the images.
    kernel_size: size of the transposed convolutions: 4, or the paper's 5.
    lowest: the side of the lowest stage.
  """

  widths: Sequence[int]
  axis_name: str
  image_channels: int = 3
  kernel_size: int = 4
  lowest: int = 4

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    """[N, noise_dim] -> [N, H, W, image_channels] in [-1, 1], float32."""
    first, side = self.widths[0], self.lowest
    # Normalised before the reshape: in the lowest stage every place has its own moments.
    x = nn.Dense(side * side * first, use_bias=False, kernel_init=normal_init, name="linear")(z)
    x = nn.relu(BatchNorm(self.axis_name, name=f"norm_{side}")(x, train)).reshape(-1, side, side, first)
    for width in self.widths[1:]:
      side *= 2
      x = TransposedConv(width, self.kernel_size, name=f"conv_{side}")(x)
      x = nn.relu(BatchNorm(self.axis_name, name=f"norm_{side}")(x, train))
    return nn.tanh(TransposedConv(self.image_channels, self.kernel_size, name="to_image")(x))


class _Discriminating(nn.Module):
  """The layers before the heads. Attributes as in `Generator`; `widths` is used in reverse."""

  widths: Sequence[int]
  axis_name: str
  kernel_size: int = 4

  couples_samples = True  # through batch norm's moments

  def features(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, C] -> [N, F], the lowest stage; called in compact methods."""
    top = x.shape[1] // 2
    for width in reversed(self.widths):
      side = x.shape[1] // 2
      x = StridedConv(width, self.kernel_size, name=f"conv_{side}")(x)
      if side < top:
        x = BatchNorm(self.axis_name, name=f"norm_{side}")(x, train)
      x = nn.leaky_relu(x, LEAKY_SLOPE)
    return x.reshape(x.shape[0], -1)


class Discriminator(_Discriminating):
  """Maps images to logits."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, C] -> [N], float32."""
    return _logits(self.features(x, train))


class Classifier(_Discriminating, kw_only=True):
  """A discriminator with a logit per class in place of its own."""

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, C] -> [N, num_classes], float32."""
    return _class_logits(self.num_classes, self.features(x, train))


class AuxiliaryClassifier(_Discriminating, kw_only=True):
  """A discriminator with a second head for the class."""

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None, *, train: bool) -> tuple[jax.Array, jax.Array]:
    """[N, H, W, C], no keys needed -> ([N], [N, num_classes]), float32."""
    del keys
    x = self.features(x, train)
    return _logits(x), _class_logits(self.num_classes, x)


def _logits(features: jax.Array) -> jax.Array:
  """[N, F] -> [N]; called in compact methods, as the next one."""
  return nn.Dense(1, use_bias=False, kernel_init=normal_init, name="linear")(features)[:, 0]


def _class_logits(num_classes: int, features: jax.Array) -> jax.Array:
  """[N, F] -> [N, num_classes]."""
  return nn.Dense(num_classes, kernel_init=normal_init, name="classes")(features)
