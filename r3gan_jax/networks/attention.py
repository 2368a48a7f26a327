"""Self-attention over the places of an image (Zhang et al. 2019, SAGAN, arXiv 1805.08318, section 3), as in its code.

    y = x + gamma o( softmax( theta(x)^T phi(x) ) g(x) )        gamma = 0 at first

theta, phi, g and o are 1x1 convolutions without bias. Keys and values, phi and g, are the largest of 2x2 places each,
which the paper does not mention. With several heads, each may have a mask of the keys that a query sees, as YLG's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Masks = Callable[[int], np.ndarray]
"""Side S of a map of queries -> bool [heads, S S, S S / 4]: which of the pooled places, row by row, a query sees."""

MASKED = -1000.0
"""The logit of a key that a query does not see."""


class Attention(nn.Module):
  """The layer; it also sows the weights [N, heads, queries, keys] as "weights" into "intermediates".

  Attributes:
    kernel_init: of the convolutions.
    heads: must divide an eighth of the channels, which is the width of all keys together.
    masks: see `Masks`; None: queries see all keys.
  """

  kernel_init: nn.initializers.Initializer
  heads: int = 1
  masks: Masks | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, S, S, C] -> [N, S, S, C]."""
    samples, side, _, channels = x.shape

    def projected(name: str, width: int, x: jax.Array) -> jax.Array:
      return nn.Dense(width, use_bias=False, kernel_init=self.kernel_init, name=name)(x)

    def by_head(x: jax.Array) -> jax.Array:
      return x.reshape(samples, -1, self.heads, x.shape[-1] // self.heads)

    queries = by_head(projected("theta", channels // 8, x))
    keys = by_head(_largest_of_2x2(projected("phi", channels // 8, x)))
    values = by_head(_largest_of_2x2(projected("g", channels // 2, x)))
    logits = jnp.einsum("nqhc,nkhc->nhqk", queries, keys)
    if self.masks is not None:
      logits = jnp.where(jnp.asarray(self.masks(side)), logits, MASKED)
    weights = nn.softmax(logits)
    self.sow("intermediates", "weights", weights)
    seen = jnp.einsum("nhqk,nkhc->nqhc", weights, values).reshape(samples, side, side, channels // 2)
    return x + self.param("gamma", nn.initializers.zeros, ()) * projected("o", channels, seen)


def _largest_of_2x2(x: jax.Array) -> jax.Array:
  """[N, 2H, 2W, C] -> [N, H, W, C]."""
  samples, height, width, channels = x.shape
  return jnp.max(x.reshape(samples, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
