"""The perceptual distance LPIPS, by VGG16's blocks (Zhang et al. 2018, arXiv 1801.03924), version 0.1."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from r3gan_jax.metrics.vgg import BLOCKS, Convolutions

_MEAN = (-0.030, -0.088, -0.188)
_STANDARD_DEVIATION = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class LPIPS(nn.Module):
  """The distance of RGB images in 0..255, two of float32 [N, H, W, 3] -> float32 [N].

  At each place of a block's output it is the squared difference of the unit vectors, weighted by channel; then the mean
  over places, and the sum over blocks.
  """

  @nn.compact
  def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
    mean, deviation = (jnp.array(values)[None, None, None] for values in (_MEAN, _STANDARD_DEVIATION))
    images = (jnp.concatenate([first, second]) / 127.5 - 1 - mean) / deviation
    total = jnp.zeros(first.shape[0])
    for block, outputs in enumerate(Convolutions(name="vgg16")(images)):
      length = jnp.sqrt(jnp.sum(jnp.square(outputs), axis=-1, keepdims=True))
      unit_first, unit_second = jnp.split(outputs / (length + _EPSILON), 2)
      weights = self.param(f"lin{block}", nn.initializers.ones, (BLOCKS[block][0],))
      total += jnp.mean(jnp.sum(weights[None, None, None] * jnp.square(unit_first - unit_second), axis=-1), (1, 2))
    return total


def abstract_params() -> dict:
  """Returns the parameters as `jax.ShapeDtypeStruct`s: VGG16's convolutions in 'vgg16', and the weights of LPIPS."""
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  return jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)["params"]
