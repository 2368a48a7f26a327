"""R3GAN's networks with an image as condition: an encoder in front of G, and a D that sees more than an image.

A condition [N, h, w, c] has the resolution of one of the stages: that of the images, or less.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import PointwiseConv, stage_dtype
from r3gan_jax.networks.r3gan import Discriminator, Downsample, Generator, ResidualBlock


class ConditionalGenerator(nn.Module):
  """Maps noise and a condition to an image.

  The encoder is the mirror image of `decoder` from the condition's stage down to 4x4. Its features are added to those
  of the same stage, as in a U-Net (Ronneberger et al. 2015, arXiv 1505.04597).

  Attributes:
    decoder: an unconditional generator; the encoder has its widths, groups and blocks.
  """

  decoder: Generator

  @property
  def image_dtype(self) -> jnp.dtype:
    """The dtype of the last layer."""
    return self.decoder.image_dtype

  @nn.compact
  def __call__(self, z: jax.Array, condition: jax.Array) -> jax.Array:
    """z [N, noise_dim] float32, condition [N, h, w, c] float32 -> images [N, H, W, C] float32."""
    decoder = self.decoder
    top = (condition.shape[1] // decoder.base[0]).bit_length() - 1
    x = PointwiseConv(decoder.widths[top], name="from_condition")(condition.astype(stage_dtype(decoder, top)))
    encoded = []
    for stage in range(top, -1, -1):
      x = x.astype(stage_dtype(decoder, stage))
      if stage != top:
        x = Downsample(decoder.widths[stage], name=f"down_{stage}")(x)
      for block in range(decoder.blocks[stage]):
        x = ResidualBlock(
          decoder.cardinalities[stage],
          decoder.expansion,
          sum(decoder.blocks),
          decoder.grouped_conv,
          name=f"stage_{stage}_block_{block}",
        )(x)
      encoded.append(x)
    return decoder(z, None, encoded[::-1])


class PairDiscriminator(nn.Module):
  """Maps an image, and what it is judged beside, to a logit: `critic` of both, joined along the channels.

  With a fixed activation pattern it is linear in (image, beside, biases) jointly. `bias_scale` [N] multiplies `beside`
  as well as the biases of a sample, so D(s x, c, s) = s D(x, c, 1): see losses/penalties.py.
  """

  piecewise_linear: ClassVar[bool] = True

  critic: Discriminator

  @nn.compact
  def __call__(self, images: jax.Array, beside: jax.Array, bias_scale: jax.Array | None = None) -> jax.Array:
    """images [N, H, W, C] float32, beside [N, H, W, c] float32 -> logits [N] float32."""
    beside = beside.astype(images.dtype)
    if bias_scale is not None:
      beside = beside * bias_scale.astype(beside.dtype)[:, None, None, None]
    return self.critic(jnp.concatenate([images, beside], axis=-1), None, bias_scale)
