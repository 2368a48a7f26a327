"""DINOv2's ViT-L/14, without registers: the features of FD_DINOv2.

Oquab et al. 2023, arXiv 2304.07193; Stein et al. 2023, arXiv 2306.04675, who found that the Fréchet distance in them
agrees with people where FID does not. Preprocessing is that of EDM2's calculate_metrics.py (Karras et al. 2024, arXiv
2312.02696): resized to 224 by cubic interpolation with antialiasing, in float32 and not clipped, and standardised by
ImageNet's channel statistics. dgm-eval, the code of Stein et al., rounds what Pillow resizes to 8 bits instead; EDM2
calls the results almost the same. Layers have the names of the published weights.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.metrics.features import FeatureNetwork, as_rgb, cubic, resize, standardise
from r3gan_jax.networks.precise import PRECISION, Conv

SIDE = 224
PATCH = 14
TRAINED_SIDE = 37
"""In patches: the weights have a position for each of 37x37, as of images of 518x518."""

_POSITION_OFFSET = 0.1
_RESIZE = "bicubic"


class Attention(nn.Module):
  """Self-attention: [N, tokens, width] -> the same."""

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    qkv = nn.Dense(3 * width, precision=PRECISION, name="qkv")(x)
    query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.heads, width // self.heads), 2, 0)
    logits = jnp.einsum("nqhc,nkhc->nhqk", query, key, precision=PRECISION) / np.sqrt(width // self.heads)
    mixed = jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(logits), value, precision=PRECISION)
    return nn.Dense(width, precision=PRECISION, name="proj")(mixed.reshape(x.shape))


class MLP(nn.Module):
  """Two layers, four times as wide between: [N, tokens, width] -> the same."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    x = nn.gelu(nn.Dense(4 * width, precision=PRECISION, name="fc1")(x), approximate=False)
    return nn.Dense(width, precision=PRECISION, name="fc2")(x)


class LayerScale(nn.Module):
  """A factor for each channel (Touvron et al. 2021, arXiv 2103.17239)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x * self.param("gamma", nn.initializers.ones, (x.shape[-1],))[None, None]


class Block(nn.Module):
  """Attention and a perceptron, each normalised before and scaled after: [N, tokens, width] -> the same."""

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + LayerScale(name="ls1")(Attention(self.heads, name="attn")(_layer_norm("norm1")(x)))
    return x + LayerScale(name="ls2")(MLP(name="mlp")(_layer_norm("norm2")(x)))


class DINOv2(nn.Module):
  """The network: standardised float32 [N, 224, 224, 3] -> the normalised class token [N, width]."""

  width: int = 1024
  depth: int = 24
  heads: int = 16

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = Conv(self.width, (PATCH, PATCH), PATCH, "VALID", name="patch_embed")(x)
    count, side = x.shape[0], x.shape[1]
    class_token = self.param("cls_token", nn.initializers.normal(), (1, 1, self.width))
    positions = self.param("pos_embed", nn.initializers.normal(), (1, 1 + TRAINED_SIDE**2, self.width))
    x = x.reshape(count, -1, self.width) + _interpolated(positions[:, 1:], side)
    class_token = jnp.broadcast_to(class_token + positions[:, :1], (count, 1, self.width))
    x = jnp.concatenate([class_token, x], axis=1)
    for block in range(self.depth):
      x = Block(self.heads, name=f"blocks_{block}")(x)
    return _layer_norm("norm")(x[:, 0])


def preprocess(images: jax.Array) -> jax.Array:
  """Resizes and standardises uint8 [N, H, W, 1, 3 or 4]: float32 [N, 224, 224, 3]."""
  return standardise(resize(as_rgb(images), SIDE, _RESIZE))


def abstract_params() -> dict:
  """Returns the parameters as `jax.ShapeDtypeStruct`s."""
  images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
  return jax.eval_shape(DINOv2().init, jax.random.key(0), images)["params"]


def feature_network(params: dict) -> FeatureNetwork:
  """Returns the network of 'features', the class token [N, 1024]."""
  network = DINOv2()

  def apply(params: dict, images: jax.Array) -> dict[str, jax.Array]:
    features: Any = network.apply({"params": params}, preprocess(images))
    return {"features": features}

  return FeatureNetwork("dinov2-vitl14", apply, params, _RESIZE)


def _layer_norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(1e-6, use_fast_variance=False, name=name)


def _interpolated(positions: jax.Array, side: int) -> jax.Array:
  """Brings positions [1, 37 * 37, width] to side x side patches: [1, side * side, width].

  As the published code does for these weights: by cubic convolution with a = -3/4 (torch's), without antialiasing, and
  by a scale that is 0.1 patches too large. Positions beyond the border get its value.
  """
  at = (np.arange(side) + 0.5) * TRAINED_SIDE / (side + _POSITION_OFFSET) - 0.5
  matrix = np.zeros((side, TRAINED_SIDE))
  for offset in range(-1, 3):
    source = np.floor(at).astype(int) + offset
    np.add.at(matrix, (np.arange(side), np.clip(source, 0, TRAINED_SIDE - 1)), cubic(at - source, -0.75))
  matrix = matrix.astype(np.float32)
  grid = positions.reshape(TRAINED_SIDE, TRAINED_SIDE, -1)
  grid = jnp.einsum("ih,hwc,jw->ijc", matrix, grid, matrix, precision=PRECISION, optimize=True)
  return grid.reshape(1, side * side, -1)
