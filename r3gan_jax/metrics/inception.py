"""The Inception network of FID, KID and Inception score.

Szegedy et al. 2015, arXiv 1512.00567, in the form of Google's graph of 2015-12-05 and its port to PyTorch. It differs
from torchvision's network, which changes the FID by about 1.5: average pools do not count padding, the last block uses
max pooling, and there are 1008 logits. Layers have the names of the published weights, which are TensorFlow's; batch
normalisation is folded into the convolutions (`interop.weights`).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from r3gan_jax.metrics.features import FeatureNetwork, as_rgb, resize
from r3gan_jax.networks import precise
from r3gan_jax.networks.precise import PRECISION

SIDE = 299


class Conv(nn.Module):
  """A convolution with a kh x kw kernel, a bias and a ReLU."""

  width: int
  kernel: tuple[int, int] = (1, 1)
  strides: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = precise.Conv(self.width, self.kernel, self.strides, self.padding)
    nn.share_scope(self, conv)
    return nn.relu(conv(x))


class BlockA(nn.Module):
  """The block at 35x35: branches of 1x1, 5x5 and two 3x3 convolutions."""

  pool_width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    single = Conv(64, name="branch1x1")(x)
    five = Conv(48, name="branch5x5_1")(x)
    five = Conv(64, (5, 5), name="branch5x5_2")(five)
    three = Conv(64, name="branch3x3dbl_1")(x)
    three = Conv(96, (3, 3), name="branch3x3dbl_2")(three)
    three = Conv(96, (3, 3), name="branch3x3dbl_3")(three)
    pool = Conv(self.pool_width, name="branch_pool")(_average_pool(x))
    return jnp.concatenate([single, five, three, pool], -1)


class BlockB(nn.Module):
  """The reduction from 35x35 to 17x17."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    single = Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x)
    double = Conv(64, name="branch3x3dbl_1")(x)
    double = Conv(96, (3, 3), name="branch3x3dbl_2")(double)
    double = Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
    return jnp.concatenate([single, double, _halve(x)], -1)


class BlockC(nn.Module):
  """The block at 17x17: branches of one and two 7x7 convolutions, factorised into 1x7 and 7x1."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    single = Conv(192, name="branch1x1")(x)
    seven = Conv(self.width, name="branch7x7_1")(x)
    seven = Conv(self.width, (1, 7), name="branch7x7_2")(seven)
    seven = Conv(192, (7, 1), name="branch7x7_3")(seven)
    double = Conv(self.width, name="branch7x7dbl_1")(x)
    double = Conv(self.width, (7, 1), name="branch7x7dbl_2")(double)
    double = Conv(self.width, (1, 7), name="branch7x7dbl_3")(double)
    double = Conv(self.width, (7, 1), name="branch7x7dbl_4")(double)
    double = Conv(192, (1, 7), name="branch7x7dbl_5")(double)
    pool = Conv(192, name="branch_pool")(_average_pool(x))
    return jnp.concatenate([single, seven, double, pool], -1)


class BlockD(nn.Module):
  """The reduction from 17x17 to 8x8."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    three = Conv(192, name="branch3x3_1")(x)
    three = Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
    seven = Conv(192, name="branch7x7x3_1")(x)
    seven = Conv(192, (1, 7), name="branch7x7x3_2")(seven)
    seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
    seven = Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
    return jnp.concatenate([three, seven, _halve(x)], -1)


class BlockE(nn.Module):
  """The block at 8x8: branches of one and two 3x3 convolutions, the last as 1x3 beside 3x1."""

  max_pool: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    single = Conv(320, name="branch1x1")(x)
    three = Conv(384, name="branch3x3_1")(x)
    row = Conv(384, (1, 3), name="branch3x3_2a")(three)
    column = Conv(384, (3, 1), name="branch3x3_2b")(three)
    double = Conv(448, name="branch3x3dbl_1")(x)
    double = Conv(384, (3, 3), name="branch3x3dbl_2")(double)
    double_row = Conv(384, (1, 3), name="branch3x3dbl_3a")(double)
    double_column = Conv(384, (3, 1), name="branch3x3dbl_3b")(double)
    pool = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pool else _average_pool(x)
    pool = Conv(192, name="branch_pool")(pool)
    return jnp.concatenate([single, row, column, double_row, double_column, pool], -1)


class Inception(nn.Module):
  """The network: float32 [N, 299, 299, 3] in [-1, 1] -> pool3 [N, 2048], logits [N, 1008].

  Attributes:
    logits_bias: whether logits include their bias; the Inception score uses them without.
  """

  logits_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
    x = Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
    x = _halve(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
    x = Conv(80, name="Conv2d_3b_1x1")(x)
    x = _halve(Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
    for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
      x = BlockA(width, name=name)(x)
    x = BlockB(name="Mixed_6a")(x)
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
      x = BlockC(width, name=name)(x)
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(max_pool=False, name="Mixed_7b")(x)
    x = BlockE(max_pool=True, name="Mixed_7c")(x)
    pool3 = jnp.mean(x, (1, 2))
    return pool3, nn.Dense(1008, self.logits_bias, precision=PRECISION, name="fc")(pool3)


def preprocess(images: jax.Array, convention: str) -> jax.Array:
  """Resizes and scales by `convention`: uint8 [N, H, W, 1 or 3] -> float32 [N, 299, 299, 3], about [-1, 1].

  pytorch-fid takes 255 to 1; NVIDIA's graph, and clean-fid, which contains it, to 127 / 128.
  """
  resized = resize(as_rgb(images), SIDE, convention)
  return resized * (2 / 255) - 1 if convention == "pytorch" else (resized - 128) / 128


def abstract_params() -> dict:
  """Returns the parameters as `jax.ShapeDtypeStruct`s."""
  images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
  return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def feature_network(params: dict, convention: str = "tensorflow") -> FeatureNetwork:
  """Returns the network of 'features', pool3 [N, 2048], and 'logits_without_bias' [N, 1008].

  The default `convention` of resizing is that of published scores.
  """
  network = Inception(logits_bias=False)

  def apply(params: dict, images: jax.Array) -> dict[str, jax.Array]:
    pool3, logits = network.apply({"params": params}, preprocess(images, convention))
    return {"features": pool3, "logits_without_bias": logits}

  return FeatureNetwork("inception-2015-12-05", apply, params, convention)


def _average_pool(x: jax.Array) -> jax.Array:
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _halve(x: jax.Array) -> jax.Array:
  return nn.max_pool(x, (3, 3), (2, 2))
