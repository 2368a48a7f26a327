"""The networks of StyleGAN (Karras et al. 2019, arXiv 1812.04948).

Stage `s` has resolution 4 * 2^s and two layers in the synthesis network; `widths` and the names of parameters number
stages from 4x4 upward. The mapping network and D, that of ProGAN with a filter before features are halved, are in
karras.py. Details that the paper leaves open are as in the authors' code.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.karras import EPSILON, Conv, Linear, activate, per_channel
from r3gan_jax.ops.resample import smooth
from r3gan_jax.ops.strided_conv import repeating_conv


class Synthesis(nn.Module):
  """The synthesis network: a constant, changed by a style and noise in each layer -> images (figure 1b).

  Attributes:
    widths: channels of each stage, 4x4 first.
    image_channels: 1 to 4.
    growing: whether there is an image at every stage, rather than at the last one only.
  """

  widths: Sequence[int]
  image_channels: int = 3
  growing: bool = False

  @property
  def layers(self) -> int:
    """The number of layers, each with a style and noise of its own."""
    return 2 * len(self.widths)

  @property
  def sides(self) -> list[int]:
    """The side of each layer's features, and of its noise."""
    return [4 * 2 ** (layer // 2) for layer in range(self.layers)]

  @nn.compact
  def __call__(self, w: jax.Array, noise: Sequence[jax.Array]) -> list[jax.Array]:
    """w [N, layers, width], noise [N, side, side, 1] of each layer -> images [N, 4, 4, C], ..., or the last alone."""
    images = []
    constant = self.param("constant", nn.initializers.ones, (4, 4, self.widths[0]))
    x = jnp.broadcast_to(constant, (w.shape[0], *constant.shape))
    for stage, width in enumerate(self.widths):
      first, second = 2 * stage, 2 * stage + 1
      if stage > 0:
        conv = Conv(width, 3, use_bias=False, operation=repeating_conv, name=f"stage_{stage}_conv0")
        x = smooth(conv(x))
      x = Epilogue(name=f"stage_{stage}_style0")(x, w[:, first], noise[first])
      x = Conv(width, 3, use_bias=False, name=f"stage_{stage}_conv1")(x)
      x = Epilogue(name=f"stage_{stage}_style1")(x, w[:, second], noise[second])
      if self.growing or stage == len(self.widths) - 1:
        images.append(Conv(self.image_channels, 1, name=f"stage_{stage}_to_image")(x))
    return images


class Epilogue(nn.Module):
  """The part of a layer after its convolution: noise, a bias, the activation, and the style (section 2, equation 1)."""

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array, noise: jax.Array) -> jax.Array:
    """x [N, H, W, C], w [N, width], noise [N, H, W, 1] -> [N, H, W, C]."""
    strength, bias = (self.param(name, nn.initializers.zeros, x.shape[-1:]) for name in ("noise_strength", "bias"))
    x = activate(x + per_channel(strength, x) * noise + per_channel(bias, x))
    scale, shift = jnp.split(Linear(2 * x.shape[-1], name="style")(w)[:, None, None], 2, axis=-1)
    return instance_norm(x) * (1 + scale) + shift


def instance_norm(x: jax.Array) -> jax.Array:
  """Normalises each sample's channels over all pixels, to mean 0 and variance 1: [N, H, W, C] -> the same."""
  x = x - jnp.mean(x, axis=(1, 2), keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(1, 2), keepdims=True) + EPSILON)
