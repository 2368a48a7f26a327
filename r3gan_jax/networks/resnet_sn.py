"""The residual networks of GANs with spectral normalisation, since SNGAN (Miyato et al. 2018, arXiv 1802.05957).

G doubles the resolution in every block, with batch norm, which may be conditional; D halves it in its first blocks, and
has no norm but that of its weights (networks/spectral_norm.py). A class enters D by projection (Miyato and Koyama 2018,
arXiv 1802.05637), or D tells it in a second head. SAGAN's attention may stand after a block of both.

1x1 convolutions of shortcuts are at the lower resolution, where they cost a quarter: they commute with repeating pixels
and with means. Parameter names contain the resolution.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.attention import Attention, Masks
from r3gan_jax.networks.layers import BatchNorm, ClassEmbedding, Conv, plain_conv
from r3gan_jax.ops.resample import mean2x, repeat2x
from r3gan_jax.ops.strided_conv import averaging_conv, repeating_conv

glorot = nn.initializers.glorot_uniform()
orthogonal = nn.initializers.orthogonal()


class ConditionalBatchNorm(nn.Module):
  """Batch norm whose scale and bias follow a condition c (Dumoulin et al. 2017, arXiv 1610.07629).

      y = (1 + A c) (x - mean) / deviation + B c

  Attributes:
    axis_name: see `BatchNorm`.
    kernel_init: of A and B, which are then kernels; None: they are rows, one for each entry of c, and zero at first.
  """

  axis_name: str
  kernel_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array | None, train: bool) -> jax.Array:
    """[N, H, W, C], condition [N, D] or None for a constant 1 -> [N, H, W, C]."""
    c = jnp.ones((1, 1), x.dtype) if condition is None else condition
    x = BatchNorm(self.axis_name, affine=False, name="norm")(x, train)

    def following(name: str) -> jax.Array:
      if self.kernel_init is None:
        return c @ self.param(name, nn.initializers.zeros, (c.shape[1], x.shape[-1]))
      return nn.Dense(x.shape[-1], use_bias=False, kernel_init=self.kernel_init, name=name)(c)

    return x * (1 + following("scale"))[:, None, None] + following("bias")[:, None, None]


class UpBlock(nn.Module):
  """A block of G: doubles the resolution.

  Attributes:
    width: channels of the result.
    axis_name: the mesh axis over which a batch is sharded.
    kernel_init: of the convolutions.
    condition_init: `ConditionalBatchNorm.kernel_init`.
  """

  width: int
  axis_name: str
  kernel_init: nn.initializers.Initializer
  condition_init: nn.initializers.Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array | None, train: bool) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, width]."""
    norms = (ConditionalBatchNorm(self.axis_name, self.condition_init, name=f"norm_{i}") for i in (1, 2))
    shortcut = nn.Dense(self.width, kernel_init=self.kernel_init, name="shortcut")(x)
    x = nn.relu(next(norms)(x, condition, train))
    x = Conv(self.width, self.kernel_init, repeating_conv, name="conv_1")(x)
    x = nn.relu(next(norms)(x, condition, train))
    x = Conv(self.width, self.kernel_init, name="conv_2")(x)
    return x + repeat2x(shortcut)


class DownBlock(nn.Module):
  """A block of D.

  Attributes:
    width: channels of the result.
    kernel_init: of the convolutions.
    halves: whether it halves the resolution. If not, and the width stays, the shortcut is the identity.
    first: whether its input is an image, which no ReLU precedes.
  """

  width: int
  kernel_init: nn.initializers.Initializer
  halves: bool = True
  first: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H / 2, W / 2, width], or [N, H, W, width]."""
    shortcut = mean2x(x) if self.halves else x
    if self.halves or self.width != x.shape[-1]:
      shortcut = nn.Dense(self.width, kernel_init=self.kernel_init, name="shortcut")(shortcut)
    x = x if self.first else nn.relu(x)
    x = nn.relu(Conv(self.width, self.kernel_init, name="conv_1")(x))
    operation = averaging_conv if self.halves else plain_conv
    return shortcut + Conv(self.width, self.kernel_init, operation, name="conv_2")(x)


class Generator(nn.Module):
  """Maps noise, and classes if there are any, to images.

  Attributes:
    widths: channels at 4x4, 8x8, ..., up to the images' side.
    axis_name: the mesh axis over which a batch is sharded.
    image_channels: channels of the images.
    num_classes: 0 if unconditional.
    attention_side: the resolution, from 8 upward, at which there is attention; 0: none.
    heads, masks: of the attention.
    kernel_init: of all kernels.
  """

  widths: Sequence[int]
  axis_name: str
  image_channels: int = 3
  num_classes: int = 0
  attention_side: int = 0
  heads: int = 1
  masks: Masks | None = None
  kernel_init: nn.initializers.Initializer = glorot

  condition_init = None  # of conditional batch norm: its rows are those of the classes

  def conditions(self, z: jax.Array, labels: jax.Array | None) -> tuple[jax.Array, list[jax.Array | None]]:
    """Returns the input of the first layer, and the condition of each block; called in the compact method."""
    classes = one_hot(labels, self.num_classes, z.dtype) if self.num_classes else None
    return z, [classes] * (len(self.widths) - 1)

  @nn.compact
  def __call__(self, z: jax.Array, labels: jax.Array | None = None, *, train: bool) -> jax.Array:
    """[N, noise_dim], labels [N] int32 -> [N, H, W, image_channels] in [-1, 1], float32."""
    first, conditions = self.conditions(z, labels)
    x = nn.Dense(16 * self.widths[0], kernel_init=self.kernel_init, name="linear")(first)
    x = x.reshape(-1, 4, 4, self.widths[0])
    for stage, (width, condition) in enumerate(zip(self.widths[1:], conditions, strict=True), start=1):
      side = 4 * 2**stage
      x = UpBlock(width, self.axis_name, self.kernel_init, self.condition_init, name=f"block_{side}")(
        x, condition, train
      )
      if side == self.attention_side:
        x = Attention(self.kernel_init, self.heads, self.masks, name=f"attention_{side}")(x)
    x = nn.relu(ConditionalBatchNorm(self.axis_name, name="norm")(x, None, train))
    return nn.tanh(Conv(self.image_channels, self.kernel_init, name="to_image")(x))


class Discriminator(nn.Module):
  """Maps images, and classes if there are any, to logits; each depends on its image alone.

  Attributes:
    widths: channels of the blocks, from the image on.
    whole_blocks: how many of them, the last ones, keep the resolution.
    num_classes: 0 if unconditional.
    attention_side: the resolution, below the images', at which there is attention; 0: none.
    heads, masks: of the attention.
    head_bias: whether the last layer has a bias.
    kernel_init: of all kernels.
  """

  widths: Sequence[int]
  whole_blocks: int = 2
  num_classes: int = 0
  attention_side: int = 0
  heads: int = 1
  masks: Masks | None = None
  head_bias: bool = True
  kernel_init: nn.initializers.Initializer = glorot

  def features(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, h, w, widths[-1]]; called in compact methods."""
    halving = len(self.widths) - self.whole_blocks
    for block, width in enumerate(self.widths):
      of_block: dict[str, Any] = {"halves": block < halving, "first": block == 0}
      name = f"block_{x.shape[1]}" if block < halving else f"block_{x.shape[1]}_{block - halving + 1}"
      x = DownBlock(width, self.kernel_init, **of_block, name=name)(x)
      if block < halving and x.shape[1] == self.attention_side:
        x = Attention(self.kernel_init, self.heads, self.masks, name=f"attention_{x.shape[1]}")(x)
    return nn.relu(x)

  def logits(self, features: jax.Array) -> jax.Array:
    """Returns the logits [N] of the last layer, from the sum over all places; called in compact methods."""
    head = nn.Dense(1, use_bias=self.head_bias, kernel_init=self.kernel_init, name="linear")
    return head(jnp.sum(features, axis=(1, 2)))[:, 0]

  @nn.compact
  def __call__(self, x: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """[N, H, W, C], labels [N] int32 -> [N], float32."""
    features = self.features(x)
    logits = self.logits(features)
    if not self.num_classes:
      return logits
    table = ClassEmbedding(self.num_classes, self.widths[-1], gain=1.0, name="class_table")
    return logits + jnp.sum(jnp.sum(features, axis=(1, 2)) * table(labels), axis=-1)


class AuxiliaryClassifier(Discriminator):
  """A discriminator that tells the class in a second head, without spectral norm, from the mean over all places."""

  @nn.compact
  def __call__(self, x: jax.Array, labels: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:  # type: ignore[override]
    """[N, H, W, C] -> ([N], logits of the classes [N, num_classes]), float32."""
    del labels
    features = self.features(x)
    rows = self.param("classes", self.kernel_init, (self.widths[-1], self.num_classes))
    bias = self.param("bias_of_classes", nn.initializers.zeros, (self.num_classes,))
    return self.logits(features), jnp.mean(features, axis=(1, 2)) @ rows + bias[None]


def one_hot(labels: jax.Array | None, num_classes: int, dtype: jnp.dtype) -> jax.Array:
  """Returns labels [N] int32 as [N, num_classes].

  Raises:
    ValueError: there are none.
  """
  if labels is None:
    raise ValueError(f"labels are missing: the network is conditional on {num_classes} classes")
  return jax.nn.one_hot(labels, num_classes, dtype=dtype)
