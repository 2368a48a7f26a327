"""The networks of R3GAN, configuration E of the paper ([P] section 3): a ResNeXt-like G and its mirror image D.

A network is a list of stages; stage `s` works at resolution 4 * 2^s. `widths`, `cardinalities` and `blocks` list
the stages from 4x4 upward in both networks, and so do the names of parameters. There is no normalisation layer; the
only biases are the two of each block, in front of its activations.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.ops.activated_conv import activated_conv
from r3gan_jax.ops.broadcast import broadcast_as
from r3gan_jax.ops.grouped_conv import grouped_conv, pointwise_conv
from r3gan_jax.ops.resample import downsample2x, upsample2x

LEAKY_SLOPE = 0.2
_ACTIVATION_GAIN = math.sqrt(2 / (1 + LEAKY_SLOPE**2))


class Generator(nn.Module):
  """Maps noise, and a class, to an image of side 4 * 2^(stages - 1).

  Attributes:
    widths: channels of each stage, 4x4 first.
    cardinalities: groups of each stage's 3x3 convolutions.
    blocks: residual blocks of each stage.
    noise_dim: length of z.
    num_classes: 0 for an unconditional generator.
    embed_dim: length of the class embedding, concatenated after z.
    image_channels: 1 to 4.
    expansion: width of a block's inner layers over its outer ones; below 1: a bottleneck.
    bfloat16_stages: how many of the highest-resolution stages compute in bfloat16; parameters stay float32.
    grouped_conv: the algorithm of the 3x3 convolutions, a key of ops.grouped_conv.ALGORITHMS or "auto"; or "fused":
      ops.activated_conv, the activations around them included.
  """

  widths: Sequence[int]
  cardinalities: Sequence[int]
  blocks: Sequence[int]
  noise_dim: int = 64
  num_classes: int = 0
  embed_dim: int = 64
  image_channels: int = 3
  expansion: float = 2
  bfloat16_stages: int = 0
  grouped_conv: str = "auto"

  @nn.compact
  def __call__(self, z: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """z [N, noise_dim] float32, labels [N] int32 (None if unconditional) -> images [N, H, W, C] float32."""
    x = _with_embedding(self, z, labels)
    for stage, (width, cardinality, blocks) in enumerate(_stages(self)):
      x = x.astype(_stage_dtype(self, stage))
      if stage == 0:
        x = GenerativeBasis(width, name="basis")(x)
      else:
        x = Upsample(width, name=f"up_{stage}")(x)
      for block in range(blocks):
        x = ResidualBlock(
          cardinality, self.expansion, sum(self.blocks), self.grouped_conv, name=f"stage_{stage}_block_{block}"
        )(x)
    return PointwiseConv(self.image_channels, name="to_image")(x).astype(_full_precision())


class Discriminator(nn.Module):
  """Maps an image, and a class, to one logit. Attributes as the Generator's; `embed_dim` is widths[0] in [P].

  Between linear layers stands LeakyReLU and nothing else, so with the activation pattern held fixed D is linear in
  (image, biases) together. `bias_scale` [N] multiplies every bias, sample by sample: D(s x, s) = s D(x, 1).
  """

  piecewise_linear: ClassVar[bool] = True

  widths: Sequence[int]
  cardinalities: Sequence[int]
  blocks: Sequence[int]
  num_classes: int = 0
  embed_dim: int = 768
  expansion: float = 2
  bfloat16_stages: int = 0
  grouped_conv: str = "auto"

  @nn.compact
  def __call__(
    self, images: jax.Array, labels: jax.Array | None = None, bias_scale: jax.Array | None = None
  ) -> jax.Array:
    """images [N, H, W, C] float32, labels [N] int32 (None if unconditional) -> logits [N] float32."""
    top = len(self.widths) - 1
    x = images.astype(_stage_dtype(self, top))
    x = PointwiseConv(self.widths[top], name="from_image")(x)
    for stage, (width, cardinality, blocks) in reversed(list(enumerate(_stages(self)))):
      x = x.astype(_stage_dtype(self, stage))
      if stage != top:
        x = Downsample(width, name=f"down_{stage}")(x)
      for block in range(blocks):
        x = ResidualBlock(
          cardinality, self.expansion, sum(self.blocks), self.grouped_conv, name=f"stage_{stage}_block_{block}"
        )(x, bias_scale)
    features = DiscriminativeBasis(self.embed_dim if self.num_classes else 1, name="basis")(x).astype(_full_precision())
    return _logits(self, features, labels)


class ResidualBlock(nn.Module):
  """x + conv1x1(act(conv3x3(act(conv1x1(x) + b1)) + b2)): the 3x3 grouped, inside a bottleneck, in [P] inverted."""

  cardinality: int
  expansion: float
  block_count: int
  grouped_conv: str

  @nn.compact
  def __call__(self, x: jax.Array, bias_scale: jax.Array | None = None) -> jax.Array:
    outer = x.shape[-1]
    inner = round(self.expansion * outer)
    # Fix-up initialisation: with m = 3 linear layers a branch, L^(-1 / (2m - 2)) and a last layer of zeros.
    gain = _ACTIVATION_GAIN * self.block_count ** (-1 / 4)
    group = inner // self.cardinality
    conv1 = self.param("conv1", _normal(gain, fan_in=outer), (outer, inner))
    bias1 = self.param("bias1", nn.initializers.zeros, (inner,))
    conv2 = self.param("conv2", _normal(gain, fan_in=group * 9), (3, 3, group, inner))
    bias2 = self.param("bias2", nn.initializers.zeros, (inner,))
    conv3 = self.param("conv3", nn.initializers.zeros, (inner, outer))
    if self.grouped_conv == "fused":
      y = _biased(_pointwise(x, conv1), bias1, bias_scale)
      bias2 = _scaled(bias2, bias_scale, y.shape[0])
      y = activated_conv(y, conv2.astype(y.dtype), bias2, self.cardinality, LEAKY_SLOPE)
      return x + _pointwise(y, conv3)
    y = _bias_activate(_pointwise(x, conv1), bias1, bias_scale)
    y = _bias_activate(
      grouped_conv(y, conv2.astype(y.dtype), self.cardinality, algorithm=self.grouped_conv), bias2, bias_scale
    )
    return x + _pointwise(y, conv3)


class Upsample(nn.Module):
  """To the next stage of G: a 1x1 convolution where the width changes, *then* resampling."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if x.shape[-1] != self.width:
      x = PointwiseConv(self.width, name="conv")(x)
    return upsample2x(x)


class Downsample(nn.Module):
  """To the next stage of D: resampling, *then* a 1x1 convolution where the width changes."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = downsample2x(x)
    if x.shape[-1] != self.width:
      x = PointwiseConv(self.width, name="conv")(x)
    return x


class PointwiseConv(nn.Module):
  """A bias-free 1x1 convolution, or linear layer, to `width` channels."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    fan_in = x.shape[-1]
    return _pointwise(x, self.param("kernel", _normal(1.0, fan_in), (fan_in, self.width)))


class GenerativeBasis(nn.Module):
  """[N, K] -> [N, 4, 4, width]: a learned constant whose channels are scaled by a linear map of the input."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    constant = self.param("constant", nn.initializers.normal(1.0), (4, 4, self.width))
    scale = PointwiseConv(self.width, name="linear")(x)
    # In the constant's dtype, as are the gradients' sums then: the constant's over samples, the scale's over pixels.
    return (constant[None] * scale[:, None, None, :].astype(constant.dtype)).astype(x.dtype)


class DiscriminativeBasis(nn.Module):
  """[N, 4, 4, C] -> [N, features]: one 4x4 filter a channel (a depthwise convolution, unpadded), then a linear map."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    constant = self.param("constant", _normal(1.0, fan_in=16), x.shape[1:])
    # In the constant's dtype, for the sums over pixels and, of its gradient, over samples.
    y = jnp.einsum("nhwc,hwc->nc", x.astype(constant.dtype), constant).astype(x.dtype)
    return PointwiseConv(self.features, name="linear")(y)


class ClassEmbedding(nn.Module):
  """A bias-free linear map of the one-hot label: [N] int32 -> [N, embed_dim] float32."""

  num_classes: int
  embed_dim: int
  gain: float

  @nn.compact
  def __call__(self, labels: jax.Array | None) -> jax.Array:
    if labels is None:
      raise ValueError(f"a network of {self.num_classes} classes needs labels")
    kernel = self.param("kernel", _normal(self.gain, fan_in=self.num_classes), (self.num_classes, self.embed_dim))
    return jax.nn.one_hot(labels, self.num_classes, dtype=kernel.dtype) @ kernel


class _Conditional(Protocol):
  """A network of classes, or of none."""

  @property
  def num_classes(self) -> int: ...

  @property
  def embed_dim(self) -> int: ...


def _with_embedding(network: _Conditional, z: jax.Array, labels: jax.Array | None) -> jax.Array:
  """z, followed by the embedding of the class, if there are classes."""
  if not network.num_classes:
    return z
  embedding = ClassEmbedding(network.num_classes, network.embed_dim, gain=1.0, name="class_embedding")
  return jnp.concatenate([z, embedding(labels)], axis=-1)


def _logits(network: _Conditional, features: jax.Array, labels: jax.Array | None) -> jax.Array:
  """[N, 1] -> [N]; of classes [N, embed_dim], projected onto their embedding."""
  if not network.num_classes:
    return features[:, 0]
  gain = 1 / math.sqrt(network.embed_dim)
  embedding = ClassEmbedding(network.num_classes, network.embed_dim, gain=gain, name="class_embedding")
  return jnp.sum(features * embedding(labels), axis=-1)


def _normal(gain: float, fan_in: int) -> nn.initializers.Initializer:
  return nn.initializers.normal(gain / math.sqrt(fan_in))


def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution of [N, H, W, I], or a linear map of [N, I], in x's dtype."""
  kernel = kernel.astype(x.dtype)
  return pointwise_conv(x, kernel) if x.ndim == 4 else x @ kernel


def _scaled(bias: jax.Array, bias_scale: jax.Array | None, samples: int) -> jax.Array:
  """[C] -> [samples, C]: the bias of sample i is multiplied by bias_scale[i]."""
  if bias_scale is None:
    return jnp.broadcast_to(bias[None], (samples, *bias.shape))
  return bias[None] * bias_scale.astype(bias.dtype)[:, None]


def _biased(x: jax.Array, bias: jax.Array, bias_scale: jax.Array | None) -> jax.Array:
  """x [N, H, W, C] + bias [C], the bias of sample i times bias_scale[i]."""
  return x + broadcast_as(_scaled(bias, bias_scale, x.shape[0])[:, None, None], x)


def _bias_activate(x: jax.Array, bias: jax.Array, bias_scale: jax.Array | None) -> jax.Array:
  """LeakyReLU of `_biased`."""
  x = _biased(x, bias, bias_scale)
  return jnp.where(x > 0, x, LEAKY_SLOPE * x)


class _Staged(Protocol):
  """A network of stages, some of them in bfloat16."""

  @property
  def widths(self) -> Sequence[int]: ...

  @property
  def bfloat16_stages(self) -> int: ...


def _stages(network: Generator | Discriminator) -> list[tuple[int, int, int]]:
  """(width, cardinality, blocks) of each stage, 4x4 first; a ValueError where the lists do not fit together."""
  lengths = {len(network.widths), len(network.cardinalities), len(network.blocks)}
  if len(lengths) != 1:
    raise ValueError(
      f"widths, cardinalities and blocks need one entry a stage each: {network.widths}, "
      f"{network.cardinalities}, {network.blocks}"
    )
  for width, cardinality in zip(network.widths, network.cardinalities, strict=True):
    if width * network.expansion % cardinality:
      raise ValueError(f"cardinality {cardinality} does not divide width {width} times expansion {network.expansion}")
  return list(zip(network.widths, network.cardinalities, network.blocks, strict=True))


def _stage_dtype(network: _Staged, stage: int) -> jnp.dtype:
  bfloat16 = stage >= len(network.widths) - network.bfloat16_stages
  return jnp.dtype(jnp.bfloat16) if bfloat16 else _full_precision()


def _full_precision() -> jnp.dtype:
  """float32, or float64 under jax_enable_x64 (for reference computations)."""
  return jnp.result_type(float)
