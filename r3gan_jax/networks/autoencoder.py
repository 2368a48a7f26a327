"""Autoencoders that serve as discriminators: those of EBGAN and BEGAN, and BEGAN's generator.

They map images to (reconstruction, code). Parameter names contain the resolution.
"""

from collections.abc import Callable, Sequence

import jax
from flax import linen as nn

from r3gan_jax.networks.layers import BatchNorm
from r3gan_jax.ops.grouped_conv import grouped_conv
from r3gan_jax.ops.resample import repeat2x
from r3gan_jax.ops.strided_conv import strided_conv, transposed_conv

_glorot = nn.initializers.glorot_uniform()


def _conv(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
  """Applies a convolution of stride 1; arguments are those of `strided_conv`."""
  return grouped_conv(x, kernel, groups=1, padding=(padding, padding))


class _Conv(nn.Module):
  """A convolution with a bias, padded by 1.

  Attributes:
    features: channels of the result.
    kernel_size: 4, or 3.
    kernel_init: of the weights; biases are initially 0.
    convolve: (x, kernel, padding) -> result: one of the three above.
  """

  features: int
  kernel_size: int
  kernel_init: nn.initializers.Initializer
  convolve: Callable[[jax.Array, jax.Array, tuple[int, int]], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, ..., features]."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    x = self.convolve(x, self.param("kernel", self.kernel_init, shape), (1, 1))
    return x + self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None]


class StridedAutoencoder(nn.Module):
  """EBGAN's discriminator (Zhao et al. 2017, arXiv 1609.03126, appendix D): convolutions and their transposes.

  Batch norm after every layer but the first and the last; ReLU; tanh at the end (the paper leaves it open). Weights are
  initially N(0, 0.002^2).

  Attributes:
    widths: channels of the code, then of each stage above it, upward; images have 2^len(widths) times its side.
    axis_name: the mesh axis over which a batch is sharded.
  """

  widths: Sequence[int]
  axis_name: str

  couples_samples = True  # through batch norm's moments

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """[N, H, W, C] -> [N, H, W, C] in [-1, 1], codes [N, h w widths[0]], not negative."""

    def layer(x: jax.Array, part: str, width: int, convolve: Callable[..., jax.Array]) -> jax.Array:
      return _Conv(width, 4, nn.initializers.normal(0.002), convolve, name=part)(x)

    def norm(x: jax.Array, name: str) -> jax.Array:
      return nn.relu(BatchNorm(self.axis_name, name=name)(x, train))

    height, channels = x.shape[1], x.shape[-1]
    first, *others = reversed(self.widths)
    x = nn.relu(layer(x, f"encode_{height // 2}", first, strided_conv))
    for width in others:
      side = x.shape[1] // 2
      x = norm(layer(x, f"encode_{side}", width, strided_conv), f"encode_norm_{side}")
    code = x.reshape(x.shape[0], -1)
    for width in self.widths[1:]:
      side = 2 * x.shape[1]
      x = norm(layer(x, f"decode_{side}", width, transposed_conv), f"decode_norm_{side}")
    return nn.tanh(layer(x, "to_image", channels, transposed_conv)), code


class Decoder(nn.Module):
  """BEGAN's generator, and the decoder of its discriminator (Berthelot et al. 2017, arXiv 1703.10717, figure 1).

  Two 3x3 convolutions at 8x8, 16x16, ..., each followed by ELU, with nearest-neighbour upsampling between. The last
  layer is linear. Weights are initially Glorot's.

  Attributes:
    width: channels of all hidden layers.
    side: of the images: 8 times a power of 2.
    image_channels: channels of the images.
  """

  width: int
  side: int
  image_channels: int

  @nn.compact
  def __call__(self, code: jax.Array) -> jax.Array:
    """[N, noise_dim] -> [N, side, side, image_channels], not clipped."""
    x = nn.Dense(64 * self.width, kernel_init=_glorot, name="linear")(code).reshape(-1, 8, 8, self.width)
    while True:
      for layer in range(2):
        x = nn.elu(_Conv(self.width, 3, _glorot, _conv, name=f"conv_{x.shape[1]}_{layer}")(x))
      if x.shape[1] == self.side:
        return _Conv(self.image_channels, 3, _glorot, _conv, name="to_image")(x)
      x = repeat2x(x)


class Encoder(nn.Module):
  """The encoder of BEGAN's discriminator: two convolutions a scale, whose width grows by `width` from scale to scale.

  Strided convolutions, also followed by ELU, lead from one scale to the next. The code is linear. `width` as in
  `Decoder`; `code_dim` is the length of the code.
  """

  width: int
  code_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, code_dim]."""

    def layer(x: jax.Array, name: str, width: int, convolve: Callable[..., jax.Array] = _conv) -> jax.Array:
      return nn.elu(_Conv(width, 3, _glorot, convolve, name=name)(x))

    width = self.width
    x = layer(x, "from_image", width)
    while True:
      side = x.shape[1]
      x = layer(layer(x, f"conv_{side}_0", width), f"conv_{side}_1", width)
      if side == 8:
        return nn.Dense(self.code_dim, kernel_init=_glorot, name="linear")(x.reshape(x.shape[0], -1))
      x = layer(x, f"down_{side}", width, strided_conv)
      width += self.width


class BalancedAutoencoder(nn.Module):
  """BEGAN's discriminator: `Encoder`, then `Decoder`, without batch norm; attributes are theirs."""

  width: int
  code_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N, H, W, C] -> [N, H, W, C], codes [N, code_dim]."""
    code = Encoder(self.width, self.code_dim, name="encoder")(x)
    return Decoder(self.width, x.shape[1], x.shape[-1], name="decoder")(code), code
