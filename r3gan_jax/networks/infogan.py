"""The networks of InfoGAN for MNIST (Chen et al. 2016, arXiv 1606.03657, appendix C.1 and the authors' code).

DCGAN's kind at two resolutions with a dense layer of 1024 features before, or behind, and biases everywhere, those
before batch norm without effect. Pixels are in [0, 1]. Weights are initially N(0, 0.02^2).
"""

from functools import partial

import jax
from flax import linen as nn

from r3gan_jax.networks.layers import BatchNorm, StridedConv, TransposedConv, normal_init

_dense = partial(nn.Dense, kernel_init=normal_init)
_leaky_relu = partial(nn.leaky_relu, negative_slope=0.1)  # 0.01 in the authors' code


class Generator(nn.Module):
  """Maps noise and codes to images.

  Attributes:
    widths: channels at a quarter and at half of the images' side.
    dense_width: width of the dense layer.
    side: of the images, a multiple of 4.
    image_channels: channels of the images.
    axis_name: the mesh axis over which a batch is sharded.
  """

  widths: tuple[int, int]
  dense_width: int
  side: int
  image_channels: int
  axis_name: str

  @nn.compact
  def __call__(self, z: jax.Array, train: bool) -> jax.Array:
    """[N, noise_dim] -> [N, side, side, image_channels] in [0, 1], float32."""
    quarter, half = self.widths
    side = self.side // 4
    x = nn.relu(BatchNorm(self.axis_name, name="norm_0")(_dense(self.dense_width, name="linear_0")(z), train))
    # Normalised before the reshape, as in DCGAN: every place has its own moments.
    x = BatchNorm(self.axis_name, name="norm_1")(_dense(side * side * quarter, name="linear_1")(x), train)
    x = TransposedConv(half, 4, use_bias=True, name="conv")(nn.relu(x).reshape(-1, side, side, quarter))
    x = nn.relu(BatchNorm(self.axis_name, name="norm_2")(x, train))
    return nn.sigmoid(TransposedConv(self.image_channels, 4, use_bias=True, name="to_image")(x))


class Discriminator(nn.Module):
  """Maps images to a logit of "real", and to Q's guess of their codes from the same features.

  Attributes:
    widths, dense_width, axis_name: as in `Generator`; used in reverse.
    q_width: width of Q's own layer.
    codes: the number of values that Q returns.
  """

  widths: tuple[int, int]
  dense_width: int
  q_width: int
  codes: int
  axis_name: str

  couples_samples = True  # through batch norm's moments

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """[N, H, W, C] in [0, 1] -> ([N], [N, codes]), float32."""
    quarter, half = self.widths
    x = _leaky_relu(StridedConv(half, 4, use_bias=True, name="from_image")(x))
    x = StridedConv(quarter, 4, use_bias=True, name="conv")(x)
    x = _leaky_relu(BatchNorm(self.axis_name, name="norm_0")(x, train)).reshape(x.shape[0], -1)
    x = _leaky_relu(BatchNorm(self.axis_name, name="norm_1")(_dense(self.dense_width, name="linear_0")(x), train))
    logits = _dense(1, name="linear_1")(x)[:, 0]
    q = _leaky_relu(BatchNorm(self.axis_name, name="norm_of_q")(_dense(self.q_width, name="q_0")(x), train))
    return logits, _dense(self.codes, name="q_1")(q)
