"""The networks of ProGAN (Karras et al. 2018, arXiv 1710.10196), and the layers that its successors share with it.

G has an image at every scale, from 4x4 pixels on. ProGAN fades from one scale to the next, MSG-GAN (Karnewar and Wang
2020, arXiv 1903.06048) shows all of them to a D of its own, and StyleGAN and StyleGAN2 use the layers. Stage `s` has
resolution 4 * 2^s; `widths` and the names of parameters number stages from 4x4 upward in all networks.

Equalised learning rate (section 4.1): a weight is stored with standard deviation 1 and multiplied by 1 / sqrt(fan_in)
when used, so that Adam, whose steps have one size, changes all layers at the same relative speed. With an
`lr_multiplier` m, weights are initialised 1 / m times as large, and weights and biases are multiplied by m when used:
the layer learns m times as fast. The gain sqrt(2) of He's initialisation is that of the activation, as in StyleGAN2's
code; in ProGAN's it is the weights', and biases are not multiplied by it.

As in ProGAN's code, D takes means of 2x2 pixels before the bias and activation of a stage's last convolution.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import LEAKY_SLOPE
from r3gan_jax.ops.broadcast import broadcast_as
from r3gan_jax.ops.grouped_conv import grouped_conv
from r3gan_jax.ops.resample import mean2x, repeat2x, smooth
from r3gan_jax.ops.strided_conv import averaging_conv, repeating_conv

MAPPING_LR_MULTIPLIER = 0.01
STDDEV_GROUP = 4
"""The number of samples over which D computes a standard deviation; batches are multiples of it."""
EPSILON = 1e-8


class Generator(nn.Module):
  """Maps z to an image at every stage.

  Attributes:
    widths: channels of each stage, 4x4 first.
    image_channels: 1 to 4.
  """

  widths: Sequence[int]
  image_channels: int = 3

  @nn.compact
  def __call__(self, z: jax.Array) -> list[jax.Array]:
    """z [N, noise_dim], of unit mean square -> images [N, 4, 4, C], [N, 8, 8, C], ..."""
    images = []
    x = pixel_norm(activate(First(self.widths[0], name="stage_0_conv0")(z)))
    for stage, width in enumerate(self.widths):
      if stage > 0:
        x = pixel_norm(activate(Conv(width, 3, operation=repeating_conv, name=f"stage_{stage}_conv0")(x)))
      x = pixel_norm(activate(Conv(width, 3, name=f"stage_{stage}_conv1")(x)))
      images.append(Conv(self.image_channels, 1, name=f"stage_{stage}_to_image")(x))
    return images


class Discriminator(nn.Module):
  """Maps images to logits; a logit depends on its group, `group` neighbours in the batch.

  Attributes:
    widths: channels of each stage, 4x4 first.
    group: see `minibatch_stddev`.
    smoothed: whether features are filtered before they are halved, as in StyleGAN.
  """

  widths: Sequence[int]
  group: int = STDDEV_GROUP
  smoothed: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, lod: jax.Array | None = None) -> jax.Array:
    """images [N, H, W, C] -> logits [N].

    Args:
      images: N is a multiple of `group`.
      lod: how many of the highest-resolution stages are left out; a fraction blends one with the next: `fade`. The
        images must not have details that these stages alone would see. None: 0, without parameters for others.
    """
    top = len(self.widths) - 1
    x = activate(Conv(self.widths[top], 1, name=f"stage_{top}_from_image")(images))
    for stage in range(top, 0, -1):
      x = Down(self.widths[stage], self.widths[stage - 1], self.smoothed, name=f"stage_{stage}")(x)
      if lod is not None:
        images = mean2x(images)
        coarser = Conv(self.widths[stage - 1], 1, name=f"stage_{stage - 1}_from_image")(images)
        x = blend(x, activate(coarser), lod - (top - stage))
    return Verdict(self.widths[0], self.group, name="stage_0")(x)


class MultiScaleDiscriminator(nn.Module):
  """Maps images of all stages to logits: MSG-GAN's; otherwise as `Discriminator`.

  Attributes:
    combine: how an image joins the features, beside which it is (section 3 of the paper): "simple", as it is;
      "lin_cat", after a linear map to half as many channels; "cat_lin", followed by a linear map of both.
  """

  widths: Sequence[int]
  combine: str = "simple"
  group: int = STDDEV_GROUP

  @nn.compact
  def __call__(self, images: Sequence[jax.Array]) -> jax.Array:
    """Images [N, 4, 4, C], [N, 8, 8, C], ... -> logits [N]; N is a multiple of `group`."""
    top = len(self.widths) - 1
    x = activate(Conv(self.widths[top], 1, name=f"stage_{top}_from_image")(images[top]))
    for stage in range(top, 0, -1):
      width = self.widths[stage - 1]
      x = Down(self.widths[stage], width, name=f"stage_{stage}")(with_stddev(x, self.group))
      image = images[stage - 1]
      if self.combine == "lin_cat":
        image = Conv(width // 2, 1, name=f"stage_{stage - 1}_from_image")(image)
      x = jnp.concatenate([x, image], axis=-1)
      if self.combine == "cat_lin":
        x = Conv(width, 1, name=f"stage_{stage - 1}_from_both")(x)
    return Verdict(self.widths[0], self.group, name="stage_0")(x)


COMBINATIONS = ("simple", "lin_cat", "cat_lin")
"""The ways in which images join features in `MultiScaleDiscriminator`."""


class First(nn.Module):
  """G's first layer: a convolution of 4x4 that covers a single pixel, z, with equalised learning rate."""

  width: int

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """[N, noise_dim] -> [N, 4, 4, width]."""
    x = jnp.einsum("nd,hwdc->nhwc", z, equalised(self, (4, 4, z.shape[-1], self.width)))
    return x + per_channel(self.param("bias", nn.initializers.zeros, (self.width,)), x)


class Down(nn.Module):
  """The step to the next stage of D: two 3x3 convolutions, the second followed by means of 2x2 pixels."""

  inner: int
  outer: int
  smoothed: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, 2H, 2W, I] -> [N, H, W, outer]; `inner` channels in between."""
    x = activate(Conv(self.inner, 3, name="conv0")(x))
    if self.smoothed:
      x = smooth(x)
    return activate(Conv(self.outer, 3, operation=averaging_conv, name="conv1")(x))


class Verdict(nn.Module):
  """The last layers of D."""

  width: int
  group: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, 4, 4, C] -> logits [N]."""
    x = activate(Conv(self.width, 3, name="conv")(with_stddev(x, self.group)))
    x = activate(Linear(self.width, name="linear")(x.reshape(x.shape[0], -1)))
    return Linear(1, name="logit")(x)[:, 0]


class Mapping(nn.Module):
  """The mapping network of StyleGAN and its successors: z, normalised to unit mean square, -> w.

  Attributes:
    width: of w and of all layers.
    layers: number of layers.
  """

  width: int = 512
  layers: int = 8

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """[N, noise_dim] -> [N, width], float32."""
    x = pixel_norm(z)
    for layer in range(self.layers):
      x = activate(Linear(self.width, lr_multiplier=MAPPING_LR_MULTIPLIER, name=f"layer_{layer}")(x))
    return x


class Conv(nn.Module):
  """A convolution of odd size to `width` channels, with equalised learning rate.

  Attributes:
    operation: (x, kernel) -> y; one of ops/strided_conv.py changes the resolution.
  """

  width: int
  size: int
  use_bias: bool = True
  operation: Callable[[jax.Array, jax.Array], jax.Array] = partial(grouped_conv, groups=1)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H', W', width], in x's dtype."""
    kernel = equalised(self, (self.size, self.size, x.shape[-1], self.width)).astype(x.dtype)
    y = self.operation(x, kernel)
    return y + per_channel(self.param("bias", nn.initializers.zeros, (self.width,)), y) if self.use_bias else y


class Linear(nn.Module):
  """An affine map with equalised learning rate."""

  width: int
  lr_multiplier: float = 1.0
  bias_init: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, I] -> [N, width]."""
    kernel = equalised(self, (x.shape[-1], self.width), self.lr_multiplier)
    bias = self.param("bias", nn.initializers.constant(self.bias_init), (self.width,))
    return x @ kernel + self.lr_multiplier * bias[None]


def fade(images: Sequence[jax.Array], lod: jax.Array) -> jax.Array:
  """Returns one image of the highest resolution, without `lod` of the stages (appendix A, figure 2).

  A whole `lod` is the image of the stage that is so far from the last one, with its pixels repeated; a fraction blends
  this with the next coarser one.

  Args:
    images: [N, 4, 4, C], [N, 8, 8, C], ...: those of G, or the means of real images.
    lod: scalar, from 0 to the number of stages - 1.
  """
  faded, top = images[0], len(images) - 1
  for stage, image in enumerate(images[1:], start=1):
    faded = blend(image, repeat2x(faded), lod - (top - stage))
  return faded


def blend(fine: jax.Array, coarse: jax.Array, share: jax.Array) -> jax.Array:
  """Returns `fine` for a share, a scalar, up to 0; `coarse` from 1 on; exactly, and in between, their weighted mean."""
  share = jnp.clip(share, 0, 1).astype(fine.dtype)
  return (1 - share) * fine + share * coarse


def pixel_norm(x: jax.Array) -> jax.Array:
  """Scales the last axis to unit mean square (section 4.2)."""
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + EPSILON)


def with_stddev(x: jax.Array, group: int) -> jax.Array:
  """Appends `minibatch_stddev` as one more channel."""
  return jnp.concatenate([x, minibatch_stddev(x, group)], axis=-1)


def minibatch_stddev(x: jax.Array, group: int) -> jax.Array:
  """Returns each group's standard deviation over samples, averaged over pixels and channels: [N, H, W, 1] (section 3).

  A group is x[i * group : (i + 1) * group], neighbours, so that a batch may be split between groups. The published code
  groups samples N / group apart.
  """
  if x.shape[0] % group:
    raise ValueError(f"{x.shape[0]} samples are not a multiple of the group size {group}")
  y = x.reshape(-1, group, *x.shape[1:])
  y = jnp.sqrt(jnp.var(y, axis=1) + EPSILON)
  y = jnp.mean(y, axis=(1, 2, 3)).repeat(group)
  return jnp.broadcast_to(y[:, None, None, None], (*x.shape[:3], 1))


def equalised(module: nn.Module, shape: Sequence[int], lr_multiplier: float = 1.0) -> jax.Array:
  """Returns the parameter "kernel" of `module`, scaled: see the docstring of this file."""
  kernel = module.param("kernel", nn.initializers.normal(1 / lr_multiplier), tuple(shape))
  return kernel * (lr_multiplier / math.sqrt(math.prod(shape[:-1])))


def activate(x: jax.Array) -> jax.Array:
  """Applies LeakyReLU with a gain that keeps the variance."""
  return math.sqrt(2) * jnp.where(x > 0, x, LEAKY_SLOPE * x)


def per_channel(bias: jax.Array, x: jax.Array) -> jax.Array:
  """Broadcasts [C] to x [N, H, W, C]."""
  return broadcast_as(bias[None, None, None], x)
