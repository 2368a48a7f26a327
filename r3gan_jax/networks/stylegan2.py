"""The networks of StyleGAN2, configuration A of [P]'s roadmap (Karras et al. 2020, arXiv 1912.04958).

A skip generator and a residual discriminator. Stage `s` has resolution 4 * 2^s; `widths` and the names of parameters
number stages from 4x4 upward in both networks. Details that the paper leaves open are as in StyleGAN2-ADA (Karras et
al. 2020, arXiv 2006.06676).

Layers that StyleGAN2 shares with its predecessors are in karras.py.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from r3gan_jax.networks.karras import (
  EPSILON,
  STDDEV_GROUP,
  Conv,
  Linear,
  activate,
  equalised,
  per_channel,
  with_stddev,
)
from r3gan_jax.networks.layers import full_precision, stage_dtype, sum_of_skips
from r3gan_jax.ops.broadcast import broadcast_as
from r3gan_jax.ops.grouped_conv import grouped_conv
from r3gan_jax.ops.resample import downsample2x
from r3gan_jax.ops.strided_conv import downsampling_conv, upsampling_conv


class Synthesis(nn.Module):
  """The synthesis network: a w for each layer -> an image of side 4 * 2^(stages - 1).

  Attributes:
    widths: channels of each stage, 4x4 first.
    image_channels: 1 to 4.
    bfloat16_stages: number of the highest-resolution stages that compute in bfloat16; parameters, styles and the sum
      of images stay float32.
  """

  widths: Sequence[int]
  image_channels: int = 3
  bfloat16_stages: int = 0

  @property
  def inputs(self) -> int:
    """The number of layers with a w of their own; a stage's ToImage uses that of the next stage's first layer."""
    return 2 * len(self.widths)

  @nn.compact
  def __call__(self, w: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """w [N, inputs, width], keys [N] -> images [N, H, W, C] float32.

    `keys` are for the pixel noise of each sample; None: the same fixed noise for all.
    """
    constant = self.param("constant", nn.initializers.normal(1.0), (4, 4, self.widths[0]))
    x = jnp.broadcast_to(constant, (w.shape[0], *constant.shape))
    noise = _pixel_noise([4 * 2 ** ((layer + 1) // 2) for layer in range(self.inputs - 1)], keys)
    additions = []
    for stage, width in enumerate(self.widths):
      x = x.astype(stage_dtype(self, stage))
      first = 2 * stage - 1
      if stage > 0:
        x = StyledConv(width, upsample=True, name=f"stage_{stage}_conv0")(x, w[:, first], noise[first])
      x = StyledConv(width, name=f"stage_{stage}_conv1")(x, w[:, first + 1], noise[first + 1])
      additions.append(ToImage(self.image_channels, name=f"stage_{stage}_to_image")(x, w[:, first + 2]))
    return sum_of_skips(additions)


class Discriminator(nn.Module):
  """Maps images to logits; a logit depends on its group, `STDDEV_GROUP` neighbours in the batch.

  Attributes are those of `Synthesis`.
  """

  widths: Sequence[int]
  bfloat16_stages: int = 0

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """images [N, H, W, C] float32 -> logits [N] float32; N is a multiple of `STDDEV_GROUP`."""
    top = len(self.widths) - 1
    x = images.astype(stage_dtype(self, top))
    x = activate(Conv(self.widths[top], 1, name="from_image")(x))
    for stage in range(top, 0, -1):
      x = x.astype(stage_dtype(self, stage))
      x = ResidualDown(self.widths[stage - 1], name=f"stage_{stage}")(x)
    x = x.astype(full_precision())
    x = activate(Conv(self.widths[0], 3, name="stage_0_conv")(with_stddev(x, STDDEV_GROUP)))
    x = activate(Linear(self.widths[0], name="stage_0_linear")(x.reshape(x.shape[0], -1)))
    return Linear(1, name="logit")(x)[:, 0]


class StyledConv(nn.Module):
  """A modulated 3x3 convolution, pixel noise of learned strength, a bias and the activation."""

  width: int
  upsample: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array, noise: jax.Array) -> jax.Array:
    x = ModulatedConv(self.width, 3, self.upsample, name="conv")(x, w)
    strength = self.param("noise_strength", nn.initializers.zeros, ())
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    return activate(x + broadcast_as(strength * noise, x) + per_channel(bias, x))


class ToImage(nn.Module):
  """A modulated 1x1 convolution without demodulation, and a bias."""

  channels: int

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
    x = ModulatedConv(self.channels, 1, demodulate=False, name="conv")(x, w)
    return x + per_channel(self.param("bias", nn.initializers.zeros, (self.channels,)), x)


class ModulatedConv(nn.Module):
  """A convolution whose input channels are scaled by a style, an affine map of w: `modulated_conv`."""

  width: int
  size: int
  upsample: bool = False
  demodulate: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
    style = Linear(x.shape[-1], bias_init=1.0, name="style")(w)
    kernel = equalised(self, (self.size, self.size, x.shape[-1], self.width))
    return modulated_conv(x, kernel, style, self.demodulate, self.upsample)


class ResidualDown(nn.Module):
  """The step to the next stage of D: two 3x3 convolutions, the second of stride 2, plus a 1x1; keeps the variance."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = activate(Conv(x.shape[-1], 3, name="conv0")(x))
    y = activate(Conv(self.width, 3, operation=downsampling_conv, name="conv1")(y))
    skip = Conv(self.width, 1, use_bias=False, name="skip")(downsample2x(x))
    return (y + skip) * math.sqrt(0.5)


def modulated_conv(x: jax.Array, kernel: jax.Array, style: jax.Array, demodulate: bool, upsample: bool) -> jax.Array:
  """Convolves sample n with a kernel modulated by its style (section 2.2, equations 1 and 3):

      k'[., ., i, o] = style[n, i] kernel[., ., i, o]
      k''[., ., i, o] = k'[., ., i, o] / sqrt(sum of k'[., ., i, o]^2 over taps and i)

  The scale of inputs is applied to x and that of outputs to the result, so that the batch shares one kernel.

  Args:
    x: [N, H, W, I]; the computation is in its dtype, except for the scale of outputs.
    kernel: [k, k, I, O] float32, k odd.
    style: [N, I] float32.
    demodulate: whether to use k'' rather than k'.
    upsample: whether to upsample by 2 in the convolution: ops.strided_conv.

  Returns:
    [N, H, W, O], or [N, 2H, 2W, O].
  """
  y = x * broadcast_as(style[:, None, None, :], x)
  shared = kernel.astype(x.dtype)
  y = upsampling_conv(y, shared) if upsample else grouped_conv(y, shared, groups=1)
  if demodulate:
    squares = jnp.square(style) @ jnp.sum(jnp.square(kernel), axis=(0, 1))
    y = y * broadcast_as(jax.lax.rsqrt(squares + EPSILON)[:, None, None, :], y)
  return y


def _pixel_noise(sides: Sequence[int], keys: jax.Array | None) -> list[jax.Array]:
  """Draws N(0, 1) [N, side, side, 1] for each of `sides` from keys [N]; without keys, fixed noise [1, ...]."""
  sizes = [side * side for side in sides]
  if keys is None:
    drawn = jnp.asarray(np.random.default_rng(0).standard_normal((1, sum(sizes))), full_precision())
  else:  # one draw for all layers: separate ones take seconds to compile
    drawn = jax.vmap(lambda key: jax.random.normal(key, (sum(sizes),)))(keys)
  parts = jnp.split(drawn, np.cumsum(sizes)[:-1].tolist(), axis=1)
  return [part.reshape(-1, side, side, 1) for part, side in zip(parts, sides, strict=True)]
