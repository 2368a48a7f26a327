"""The networks of AC-GAN for CIFAR-10 (Odena et al. 2017, arXiv 1610.09585, appendix A).

DCGAN's, but G's first layer has a bias in place of batch norm, and D, of 3x3 convolutions of stride 2 and 1 in turn,
has dropout after each layer and a second head for the class. Weights are initially N(0, 0.02^2).
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from r3gan_jax.networks.layers import LEAKY_SLOPE, BatchNorm, Conv, StridedConv, TransposedConv, dropout, normal_init


class Generator(nn.Module):
  """Maps noise and one-hot classes to images of side 4 * 2^len(widths).

  Attributes:
    widths: channels at 4x4, 8x8, ..., up to half the images' side.
    axis_name: the mesh axis over which a batch is sharded.
    image_channels: channels of the images.
  """

  widths: Sequence[int]
  axis_name: str
  image_channels: int = 3

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    """[N, noise_dim + num_classes] -> [N, H, W, image_channels] in [-1, 1], float32."""
    x = nn.relu(nn.Dense(16 * self.widths[0], kernel_init=normal_init, name="linear")(z))
    x = x.reshape(-1, 4, 4, self.widths[0])
    for stage, width in enumerate(self.widths[1:], start=1):
      side = 4 * 2**stage
      x = TransposedConv(width, 5, name=f"conv_{side}")(x)
      x = nn.relu(BatchNorm(self.axis_name, name=f"norm_{side}")(x, train))
    return nn.tanh(TransposedConv(self.image_channels, 5, use_bias=True, name="to_image")(x))


class Discriminator(nn.Module):
  """Maps images of side 4 * 2^(len(widths) / 2) to logits of "real" and of the classes.

  Attributes:
    widths: channels of the layers, two at each resolution, from 4x4 upward; used in reverse.
    axis_name: as in `Generator`.
    num_classes: the number of classes.
    dropout: the fraction of features that are zeroed, where there are keys.
  """

  widths: Sequence[int]
  axis_name: str
  num_classes: int
  dropout: float

  couples_samples = True  # through batch norm's moments

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None, *, train: bool) -> tuple[jax.Array, jax.Array]:
    """[N, H, W, C], keys [N] for dropout -> ([N], [N, num_classes]), float32."""
    for layer, width in reversed([*enumerate(self.widths)]):
      side = 4 * 2 ** (layer // 2)
      if layer % 2:
        name = f"strided_conv_{side}"
        x = StridedConv(width, 3, name=name)(x)
      else:
        name = f"conv_{side}"
        x = Conv(width, normal_init, use_bias=False, name=name)(x)
      if layer < len(self.widths) - 1:
        x = BatchNorm(self.axis_name, name=f"norm_of_{name}")(x, train)
      x = nn.leaky_relu(x, LEAKY_SLOPE)
      x = dropout(x, keys, layer, 1 - self.dropout)
    x = x.reshape(x.shape[0], -1)
    logits = nn.Dense(1, kernel_init=normal_init, name="linear")(x)[:, 0]
    return logits, nn.Dense(self.num_classes, kernel_init=normal_init, name="classes")(x)
