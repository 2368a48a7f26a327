"""The critic of WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028), in the form of DCGAN's discriminator.

Without batch norm, which would make an image's logit depend on the others (section 4); G is DCGAN's. `widths` list the
channels from 4x4 upward, one for each halving of the resolution; names of parameters say at which one they work.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import LEAKY_SLOPE
from r3gan_jax.ops.strided_conv import strided_conv


class Critic(nn.Module):
  """Maps images of side 4 * 2^len(widths) to logits.

  Attributes:
    widths: channels; used backwards.
    layer_norm: whether activations are normalised over all features of a sample, as the paper recommends if at all.
  """

  widths: Sequence[int]
  layer_norm: bool = False

  @property
  def piecewise_linear(self) -> bool:
    """Whether losses.penalties.directional may be used."""
    return not self.layer_norm

  @nn.compact
  def __call__(self, x: jax.Array, bias_scale: jax.Array | None = None) -> jax.Array:
    """[N, H, W, C] -> [N], float32; the biases of sample i are multiplied by bias_scale[i], default 1."""
    scale = jnp.ones(x.shape[:1], x.dtype) if bias_scale is None else bias_scale
    for stage, width in reversed([*enumerate(self.widths)]):
      side = 4 * 2**stage
      kernel = self.param(f"kernel_{side}", nn.initializers.he_normal(), (4, 4, x.shape[-1], width))
      bias = self.param(f"bias_{side}", nn.initializers.zeros, (width,))
      x = strided_conv(x, kernel, (1, 1)) + jnp.einsum("n,c->nc", scale, bias)[:, None, None]
      if self.layer_norm:
        x = nn.LayerNorm(reduction_axes=(1, 2, 3), name=f"norm_{side}")(x)
      x = nn.leaky_relu(x, LEAKY_SLOPE)
    logits = nn.Dense(1, use_bias=False, name="linear")(x.reshape(x.shape[0], -1))[:, 0]
    return logits + scale * self.param("bias", nn.initializers.zeros, ())
