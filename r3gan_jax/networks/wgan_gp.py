"""The critic of WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028), shaped like DCGAN's discriminator.

It has no batch norm, which would make a logit depend on the whole batch (section 4). G is DCGAN's. `widths` lists the
channels from the lowest stage upward, one per halving of the resolution; parameter names contain the resolution.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import LEAKY_SLOPE
from r3gan_jax.ops.strided_conv import strided_conv


class Critic(nn.Module):
  """Maps images to logits.

  Attributes:
    widths: channels from the lowest stage upward; used in reverse.
    layer_norm: whether to normalise over all features of a sample, the normalisation that the paper recommends.
  """

  widths: Sequence[int]
  layer_norm: bool = False

  @property
  def piecewise_linear(self) -> bool:
    """Whether losses.penalties.directional applies."""
    return not self.layer_norm

  @nn.compact
  def __call__(self, x: jax.Array, bias_scale: jax.Array | None = None) -> jax.Array:
    """[N, H, W, C] -> [N], float32; bias_scale[i], default 1, multiplies the biases of sample i."""
    scale = jnp.ones(x.shape[:1], x.dtype) if bias_scale is None else bias_scale
    for width in reversed(self.widths):
      side = x.shape[1] // 2
      kernel = self.param(f"kernel_{side}", nn.initializers.he_normal(), (4, 4, x.shape[-1], width))
      bias = self.param(f"bias_{side}", nn.initializers.zeros, (width,))
      x = strided_conv(x, kernel, (1, 1)) + jnp.einsum("n,c->nc", scale, bias)[:, None, None]
      if self.layer_norm:
        x = nn.LayerNorm(reduction_axes=(1, 2, 3), name=f"norm_{side}")(x)
      x = nn.leaky_relu(x, LEAKY_SLOPE)
    logits = nn.Dense(1, use_bias=False, name="linear")(x.reshape(x.shape[0], -1))[:, 0]
    return logits + scale * self.param("bias", nn.initializers.zeros, ())
