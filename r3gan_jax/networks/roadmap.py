"""The networks of the roadmap from StyleGAN2 to R3GAN, configuration E2 ([P] section 3).

[P] gives parameter counts at 256x256, not widths. This is our reading of it, which reproduces every count to all
published digits. Widths from 4x4 to 256x256 are those of StyleGAN2 (Karras et al. 2020), 512 512 512 512 256 128 64:

    B, C1, C2   StyleGAN2's skeleton, below; a bias-free linear map of z scales the channels of the 4x4 constant
    D1          blocks 1x1 - 3x3 - 1x1, 3 times as wide as StyleGAN2 outside, 1/4 of that inside; output skips
    D2          without output skips: networks.r3gan of expansion 1/4, ungrouped
    E1          networks.r3gan of expansion 1/2, groups of 16 channels
    E2          networks.r3gan of expansion 2, half as wide outside, groups of 16 channels

             A       B         C1, C2    D1        D2        E1        E2
    G                18890453  as B      23400192  23378304  23187648  23057952
    D                23996481  as B      23281536  23281536  23090880  23009568
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import (
  LEAKY_GAIN,
  PointwiseConv,
  add_bias,
  bias_activate,
  full_precision,
  projection_logits,
  scaled_normal,
  stage_dtype,
  sum_of_skips,
  with_embedding,
)
from r3gan_jax.networks.r3gan import GenerativeBasis, Generator
from r3gan_jax.ops.grouped_conv import grouped_conv, pointwise_conv
from r3gan_jax.ops.resample import downsample2x, upsample2x


class SkipGenerator(Generator):
  """R3GAN's generator with output skips, as in configuration D1: every stage adds to the upsampled image."""

  @property
  def image_dtype(self) -> jnp.dtype:
    """The dtype of the last layer."""
    return full_precision()  # the sum of all stages

  @nn.compact
  def __call__(self, z: jax.Array, labels: jax.Array | None = None, encoded: Sequence[jax.Array] = ()) -> jax.Array:
    """As `Generator`."""
    features = enumerate(self.features(z, labels, encoded))
    return sum_of_skips(PointwiseConv(self.image_channels, name=f"to_image_{stage}")(x) for stage, x in features)


class SkeletonGenerator(nn.Module):
  """The skeleton of StyleGAN2's synthesis network: 3x3 convolutions, resampling, output skips.

  At 4x4 there is one convolution; at other resolutions, upsampling with [1, 3, 3, 1] and two. StyleGAN2 filters *after*
  the first of the two, which is the same away from borders.

  Attributes:
    widths: channels of each stage, 4x4 first.
    noise_dim: length of z.
    num_classes: 0 for an unconditional generator.
    embed_dim: length of the class embedding, appended to z.
    image_channels: 1 to 4.
    base: height and width of the first stage.
    bfloat16_stages: number of the highest-resolution stages that compute in bfloat16; parameters stay float32.
  """

  widths: Sequence[int]
  noise_dim: int = 64
  num_classes: int = 0
  embed_dim: int = 64
  image_channels: int = 3
  base: tuple[int, int] = (4, 4)
  bfloat16_stages: int = 0

  @property
  def image_dtype(self) -> jnp.dtype:
    """The dtype of the last layer."""
    return full_precision()  # the sum of all stages

  @nn.compact
  def __call__(self, z: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """z [N, noise_dim] float32, labels [N] int32 (None if unconditional) -> images [N, H, W, C] float32."""
    x = with_embedding(self, z, labels)
    additions = []
    for stage, width in enumerate(self.widths):
      x = x.astype(stage_dtype(self, stage))
      if stage == 0:
        x = GenerativeBasis(width, self.base, name="basis")(x)
      else:
        x = BiasedConv(width, 3, name=f"stage_{stage}_conv_0")(upsample2x(x))
      x = BiasedConv(width, 3, name=f"stage_{stage}_conv_1")(x)
      additions.append(BiasedConv(self.image_channels, 1, activated=False, name=f"to_image_{stage}")(x))
    return sum_of_skips(additions)


class SkeletonDiscriminator(nn.Module):
  """StyleGAN2's residual discriminator without minibatch standard deviation.

  Attributes are those of `SkeletonGenerator`; for `bias_scale` see networks.r3gan.Discriminator.
  """

  piecewise_linear: ClassVar[bool] = True

  widths: Sequence[int]
  num_classes: int = 0
  embed_dim: int = 512
  bfloat16_stages: int = 0

  @nn.compact
  def __call__(
    self, images: jax.Array, labels: jax.Array | None = None, bias_scale: jax.Array | None = None
  ) -> jax.Array:
    """images [N, H, W, C] float32, labels [N] int32 (None if unconditional) -> logits [N] float32."""
    top = len(self.widths) - 1
    x = images.astype(stage_dtype(self, top))
    x = BiasedConv(self.widths[top], 1, name="from_image")(x, bias_scale)
    for stage in range(top, 0, -1):
      x = x.astype(stage_dtype(self, stage))
      x = DownsampleBlock(self.widths[stage - 1], name=f"stage_{stage}")(x, bias_scale)
    x = x.astype(stage_dtype(self, 0))
    x = BiasedConv(self.widths[0], 3, name="stage_0_conv")(x, bias_scale)
    x = x.reshape(len(x), 1, 1, -1)
    x = BiasedConv(self.widths[0], 1, name="hidden")(x, bias_scale)
    x = BiasedConv(self.embed_dim if self.num_classes else 1, 1, activated=False, name="output")(x, bias_scale)
    return projection_logits(self, x[:, 0, 0].astype(full_precision()), labels)


class DownsampleBlock(nn.Module):
  """Computes (conv1x1(down(x)) + down(conv(conv(x)))) / sqrt(2): [N, 2H, 2W, C] -> [N, H, W, width]."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array, bias_scale: jax.Array | None = None) -> jax.Array:
    y = BiasedConv(x.shape[-1], 3, name="conv_0")(x, bias_scale)
    y = BiasedConv(self.width, 3, downsampled=True, name="conv_1")(y, bias_scale)
    return math.sqrt(0.5) * (PointwiseConv(self.width, name="skip")(downsample2x(x)) + y)


class BiasedConv(nn.Module):
  """LeakyReLU(conv(x) + b) with a 3x3 or 1x1 convolution of one group and He et al.'s (2015) initialisation."""

  width: int
  size: int
  activated: bool = True
  downsampled: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, bias_scale: jax.Array | None = None) -> jax.Array:
    inputs = x.shape[-1]
    shape = (inputs, self.width) if self.size == 1 else (self.size, self.size, inputs, self.width)
    gain = LEAKY_GAIN if self.activated else 1.0
    kernel = self.param("kernel", scaled_normal(gain, fan_in=self.size**2 * inputs), shape).astype(x.dtype)
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    x = pointwise_conv(x, kernel) if self.size == 1 else grouped_conv(x, kernel, groups=1)
    if self.downsampled:
      x = downsample2x(x)
    return bias_activate(x, bias, bias_scale) if self.activated else add_bias(x, bias, bias_scale)
