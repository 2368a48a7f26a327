"""VGG16: its second fully connected layer has the features of precision and recall; LPIPS compares its blocks.

Simonyan and Zisserman 2014, arXiv 1409.1556; Kynkäänniemi et al. 2019, arXiv 1904.06991. Weights and preprocessing are
torchvision's: RGB in [0, 1], standardised by ImageNet's channel statistics, resized to 224 bilinearly with half-pixel
centres and without antialiasing. NVIDIA's metrics use vgg16.pt, with other weights and preprocessing, so precision and
recall computed here compare with published numbers only roughly.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r3gan_jax.metrics.features import FeatureNetwork, as_rgb, resize, standardise
from r3gan_jax.networks.precise import PRECISION, Conv

SIDE = 224
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(width, convolutions) of each block, which ends in a 2x2 max pool."""


class Convolutions(nn.Module):
  """The convolutional part: float32 [N, H, W, 3] -> the output of each block before its pool, a list."""

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    outputs: list[jax.Array] = []
    for block, (width, convolutions) in enumerate(BLOCKS, start=1):
      x = nn.max_pool(x, (2, 2), (2, 2)) if outputs else x
      for n in range(1, convolutions + 1):
        x = nn.relu(Conv(width, (3, 3), name=f"conv{block}_{n}")(x))
      outputs.append(x)
    return outputs


class VGG16(nn.Module):
  """The network: standardised float32 [N, 224, 224, 3] -> fc2 after its ReLU, [N, 4096]."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    convolutions = Convolutions()
    nn.share_scope(self, convolutions)
    x = nn.max_pool(convolutions(x)[-1], (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    for name in ("fc1", "fc2"):
      x = nn.relu(nn.Dense(4096, precision=PRECISION, name=name)(x))
    return x


def preprocess(images: jax.Array) -> jax.Array:
  """Resizes and standardises uint8 [N, H, W, 1 or 3]: float32 [N, 224, 224, 3]."""
  return standardise(resize(as_rgb(images), SIDE, "pytorch"))


def abstract_params() -> dict:
  """Returns the parameters as `jax.ShapeDtypeStruct`s."""
  images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
  return jax.eval_shape(VGG16().init, jax.random.key(0), images)["params"]


def feature_network(params: dict) -> FeatureNetwork:
  """Returns the network of 'features', fc2 [N, 4096]."""
  network = VGG16()

  def apply(params: dict, images: jax.Array) -> dict[str, jax.Array]:
    features: Any = network.apply({"params": params}, preprocess(images))
    return {"features": features}

  return FeatureNetwork("vgg16-fc2", apply, params, "pytorch")
