"""The networks of DCGAN (Radford et al. 2016, arXiv 1511.06434, figure 1 and section 3).

Strided convolutions, batch norm everywhere but after G's last layer and D's first, ReLU in G and LeakyReLU in D.
Weights are N(0, 0.02), batch norm's scales N(1, 0.02). `widths` list the channels of both networks from 4x4 upward, one
for each doubling of the resolution; names of parameters say at which one they work.
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from r3gan_jax.networks.layers import LEAKY_SLOPE, BatchNorm, StridedConv, TransposedConv, normal_init


class Generator(nn.Module):
  """Maps noise to images of side 4 * 2^len(widths).

  Attributes:
    widths: channels at 4x4, 8x8, ..., up to half the images' side.
    axis_name: the mesh axis that a batch is divided over.
    image_channels: of the result.
    kernel_size: of the transposed convolutions: 4, or the paper's 5.
  """

  widths: Sequence[int]
  axis_name: str
  image_channels: int = 3
  kernel_size: int = 4

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    """[N, noise_dim] -> [N, H, W, image_channels] in [-1, 1], float32."""
    # Over features, not channels: at 4x4 each place has its moments.
    x = nn.Dense(16 * self.widths[0], use_bias=False, kernel_init=normal_init, name="linear")(z)
    x = nn.relu(BatchNorm(self.axis_name, name="norm_4")(x, train)).reshape(-1, 4, 4, self.widths[0])
    for stage, width in enumerate(self.widths[1:], start=1):
      side = 4 * 2**stage
      x = TransposedConv(width, self.kernel_size, name=f"conv_{side}")(x)
      x = nn.relu(BatchNorm(self.axis_name, name=f"norm_{side}")(x, train))
    return nn.tanh(TransposedConv(self.image_channels, self.kernel_size, name="to_image")(x))


class Discriminator(nn.Module):
  """Maps images of side 4 * 2^len(widths) to logits. Attributes as of `Generator`; `widths` are used backwards."""

  widths: Sequence[int]
  axis_name: str
  kernel_size: int = 4

  couples_samples = True  # batch norm's moments are of all of them

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, C] -> [N], float32."""
    for stage, width in reversed([*enumerate(self.widths)]):
      side = 4 * 2**stage
      x = StridedConv(width, self.kernel_size, name=f"conv_{side}")(x)
      if stage < len(self.widths) - 1:
        x = BatchNorm(self.axis_name, name=f"norm_{side}")(x, train)
      x = nn.leaky_relu(x, LEAKY_SLOPE)
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(1, use_bias=False, kernel_init=normal_init, name="linear")(x)[:, 0]
