"""The networks of R3GAN, configuration E of [P] (section 3): a ResNeXt-like G and its mirror image D.

A network is a sequence of stages; stage `s` has resolution 4 * 2^s, or (H0, W0) * 2^s for images that are not square.
`widths`, `cardinalities`, `blocks` and the names of parameters number the stages from 4x4 upward in both networks.
There is no normalisation; the only biases are the two of each block, before its activations.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import (
  LEAKY_GAIN,
  LEAKY_SLOPE,
  PointwiseConv,
  bias_activate,
  full_precision,
  per_sample_bias,
  pointwise,
  projection_logits,
  scaled_normal,
  stage_dtype,
  with_embedding,
)
from r3gan_jax.ops.grouped_conv import grouped_conv
from r3gan_jax.ops.resample import downsample2x, upsample2x
from r3gan_jax.ops.residual_block import Weights, residual_block


class Generator(nn.Module):
  """Maps noise and a class to an image of `base` * 2^(stages - 1) pixels.

  Attributes:
    widths: channels of each stage, 4x4 first.
    cardinalities: groups of each stage's 3x3 convolutions.
    blocks: residual blocks of each stage.
    noise_dim: length of z.
    num_classes: 0 for an unconditional generator.
    embed_dim: length of the class embedding, appended to z.
    image_channels: 1 to 4.
    base: height and width of the first stage.
    expansion: ratio of a block's inner to its outer width; below 1: a bottleneck.
    bfloat16_stages: number of the highest-resolution stages that compute in bfloat16; parameters stay float32.
    grouped_conv: the algorithm of the 3x3 convolutions, a key of ops.grouped_conv.ALGORITHMS or "auto"; or "fused",
      which computes whole residual blocks: ops.residual_block.
  """

  widths: Sequence[int]
  cardinalities: Sequence[int]
  blocks: Sequence[int]
  noise_dim: int = 64
  num_classes: int = 0
  embed_dim: int = 64
  image_channels: int = 3
  base: tuple[int, int] = (4, 4)
  expansion: float = 2
  bfloat16_stages: int = 0
  grouped_conv: str = "auto"

  @property
  def image_dtype(self) -> jnp.dtype:
    """The dtype of the last layer."""
    return stage_dtype(self, len(self.widths) - 1)

  @nn.compact
  def __call__(self, z: jax.Array, labels: jax.Array | None = None, encoded: Sequence[jax.Array] = ()) -> jax.Array:
    """z [N, noise_dim] float32, labels [N] int32 (None if unconditional) -> images [N, H, W, C] float32.

    `encoded` [N, h, w, width] is added to the first stages, 4x4 first, before their blocks.
    """
    *_, x = self.features(z, labels, encoded)
    return PointwiseConv(self.image_channels, name="to_image")(x).astype(full_precision())

  def features(self, z: jax.Array, labels: jax.Array | None, encoded: Sequence[jax.Array] = ()) -> list[jax.Array]:
    """Returns the features of each stage, 4x4 first; for use in a compact method."""
    x = with_embedding(self, z, labels)
    features = []
    for stage, (width, cardinality, blocks) in enumerate(stages_of(self)):
      x = x.astype(stage_dtype(self, stage))
      if stage == 0:
        x = GenerativeBasis(width, self.base, name="basis")(x)
      else:
        x = Upsample(width, name=f"up_{stage}")(x)
      if stage < len(encoded):
        x = x + encoded[stage]
      for block in range(blocks):
        x = ResidualBlock(
          cardinality, self.expansion, sum(self.blocks), self.grouped_conv, name=f"stage_{stage}_block_{block}"
        )(x)
      features.append(x)
    return features


class Discriminator(nn.Module):
  """Maps an image and a class to a logit. Attributes are those of `Generator`; `embed_dim` is widths[0] in [P].

  Between linear layers there is only LeakyReLU, so with a fixed activation pattern D is linear in (image, biases)
  jointly. `bias_scale` [N] multiplies all biases of a sample: D(s x, s) = s D(x, 1).
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
    x = images.astype(stage_dtype(self, top))
    x = PointwiseConv(self.widths[top], name="from_image")(x)
    for stage, (width, cardinality, blocks) in reversed(list(enumerate(stages_of(self)))):
      x = x.astype(stage_dtype(self, stage))
      if stage != top:
        x = Downsample(width, name=f"down_{stage}")(x)
      for block in range(blocks):
        x = ResidualBlock(
          cardinality, self.expansion, sum(self.blocks), self.grouped_conv, name=f"stage_{stage}_block_{block}"
        )(x, bias_scale)
    features = DiscriminativeBasis(self.embed_dim if self.num_classes else 1, name="basis")(x).astype(full_precision())
    return projection_logits(self, features, labels)


class ResidualBlock(nn.Module):
  """Computes x + conv1x1(act(conv3x3(act(conv1x1(x) + b1)) + b2)): a grouped 3x3 in an (inverted) bottleneck."""

  cardinality: int
  expansion: float
  block_count: int
  grouped_conv: str

  @nn.compact
  def __call__(self, x: jax.Array, bias_scale: jax.Array | None = None) -> jax.Array:
    outer = x.shape[-1]
    inner = round(self.expansion * outer)
    # Fix-up initialisation: L^(-1 / (2m - 2)) for m = 3 linear layers per branch, and zeros in the last one.
    gain = LEAKY_GAIN * self.block_count ** (-1 / 4)
    group = inner // self.cardinality
    conv1 = self.param("conv1", scaled_normal(gain, fan_in=outer), (outer, inner))
    bias1 = self.param("bias1", nn.initializers.zeros, (inner,))
    conv2 = self.param("conv2", scaled_normal(gain, fan_in=group * 9), (3, 3, group, inner))
    bias2 = self.param("bias2", nn.initializers.zeros, (inner,))
    conv3 = self.param("conv3", nn.initializers.zeros, (inner, outer))
    if self.grouped_conv == "fused":
      conv1, conv2, conv3 = (kernel.astype(x.dtype) for kernel in (conv1, conv2, conv3))
      bias1, bias2 = (per_sample_bias(bias, bias_scale, x.shape[0]) for bias in (bias1, bias2))
      return residual_block(x, Weights(conv1, bias1, conv2, bias2, conv3), self.cardinality, LEAKY_SLOPE)
    y = bias_activate(pointwise(x, conv1), bias1, bias_scale)
    y = bias_activate(
      grouped_conv(y, conv2.astype(y.dtype), self.cardinality, algorithm=self.grouped_conv), bias2, bias_scale
    )
    return x + pointwise(y, conv3)


class Upsample(nn.Module):
  """The step to the next stage of G: a 1x1 convolution if the width changes, *then* upsampling."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if x.shape[-1] != self.width:
      x = PointwiseConv(self.width, name="conv")(x)
    return upsample2x(x)


class Downsample(nn.Module):
  """The step to the next stage of D: downsampling, *then* a 1x1 convolution if the width changes."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = downsample2x(x)
    if x.shape[-1] != self.width:
      x = PointwiseConv(self.width, name="conv")(x)
    return x


class GenerativeBasis(nn.Module):
  """Scales the channels of a learned constant by a linear map of the input: [N, K] -> [N, *size, width]."""

  width: int
  size: tuple[int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    constant = self.param("constant", nn.initializers.normal(1.0), (*self.size, self.width))
    scale = PointwiseConv(self.width, name="linear")(x)
    # In the constant's dtype, so that gradients are summed in it: the constant's over samples, the scale's over pixels.
    return (constant[None] * scale[:, None, None, :].astype(constant.dtype)).astype(x.dtype)


class DiscriminativeBasis(nn.Module):
  """Applies a filter of the image's size, 4x4, to each channel, then a linear map: [N, 4, 4, C] -> [N, features]."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    constant = self.param("constant", scaled_normal(1.0, fan_in=x.shape[1] * x.shape[2]), x.shape[1:])
    # In the constant's dtype, for the sums over pixels and, in its gradient, over samples.
    y = jnp.einsum("nhwc,hwc->nc", x.astype(constant.dtype), constant).astype(x.dtype)
    return PointwiseConv(self.features, name="linear")(y)


def stages_of(network: Generator | Discriminator) -> list[tuple[int, int, int]]:
  """Returns (width, cardinality, blocks) of each stage, 4x4 first."""
  return list(zip(network.widths, network.cardinalities, network.blocks, strict=True))
