"""Perceptrons of maxout and ReLU for small images (Goodfellow et al. 2014, arXiv 1406.2661; conditional: Mirza and
Osindero 2014, arXiv 1411.1784).

Pixels are in [0, 1]. With classes, a layer of the image's or the noise's features is joined with one of the label's.
Layers of the label and, beside them, that of noise in [0, 1] start `WIDER`: one entry of a label is not 0, where an
image and GAN's noise have a hundred, and with equal starts D does not see the label, nor G's output the noise.
Dropout draws a mask per sample, from the sample's key, and divides what it keeps by the probability of keeping, so that
a network without keys is the mean of those with them.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.networks.layers import dropout

WIDER = 10.0
"""A factor of initial weights; a choice, as the paper states none."""


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
  """Returns the initialiser U(-bound, bound)."""

  def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Maxout(nn.Module):
  """The maximum of `pieces` dense layers of `units` units, initially U(-bound, bound) (arXiv 1302.4389)."""

  units: int
  pieces: int
  bound: float = 0.005

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, C] -> [N, units]."""
    x = nn.Dense(self.units * self.pieces, kernel_init=symmetric_uniform(self.bound), name="linear")(x)
    return jnp.max(x.reshape(-1, self.units, self.pieces), axis=-1)


class Generator(nn.Module):
  """Maps noise to pixels; its weights are initially U(-0.05, 0.05), with classes wider in the first layers.

  Attributes:
    widths: units of each hidden layer; the label joins after the first.
    pixels: number of values of an image.
    mean_pixel: what all pixels are with zero weights.
    num_classes: 0 if unconditional.
    label_width: units of the label's layer.
    keep: the probability of keeping a feature, before each layer but the first.
  """

  widths: tuple[int, ...]
  pixels: int
  mean_pixel: float
  num_classes: int = 0
  label_width: int = 0
  keep: float = 1.0

  @nn.compact
  def __call__(self, z: jax.Array, labels: jax.Array | None, keys: jax.Array | None) -> jax.Array:
    """[N, noise_dim], [N] int32, keys [N] for dropout or None -> [N, pixels]."""

    def dense(x: jax.Array, width: int, name: str, bound: float = 0.05) -> jax.Array:
      return nn.relu(nn.Dense(width, kernel_init=symmetric_uniform(bound), name=name)(x))

    first, *others = self.widths
    bound = 0.05 * (WIDER if self.num_classes else 1)
    x = dense(z, first, "linear_0", bound)
    if self.num_classes:
      of_label = dense(_one_hot(labels, self.num_classes, z), self.label_width, "linear_0_of_label", bound)
      x = jnp.concatenate([x, of_label], axis=1)
    for layer, width in enumerate(others, start=1):
      x = dense(dropout(x, keys, layer, self.keep), width, f"linear_{layer}")
    x = dropout(x, keys, len(self.widths), self.keep)
    logit = math.log(self.mean_pixel / (1 - self.mean_pixel))
    start = nn.initializers.constant(logit)
    return nn.sigmoid(nn.Dense(self.pixels, kernel_init=symmetric_uniform(0.05), bias_init=start, name="linear")(x))


class Discriminator(nn.Module):
  """Maps pixels to logits, by layers of maxout.

  Attributes:
    units: of each hidden layer; the label joins after the first.
    pieces: of each hidden layer.
    num_classes: 0 if unconditional.
    label_units: of the label's layer, which has as many pieces as the first.
    keep_pixels: the probability of keeping a pixel.
    keep: the probability of keeping a feature, before each layer but the first.
  """

  units: tuple[int, ...]
  pieces: tuple[int, ...]
  num_classes: int = 0
  label_units: int = 0
  keep_pixels: float = 1.0
  keep: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, labels: jax.Array | None, keys: jax.Array | None) -> jax.Array:
    """[N, pixels], [N] int32, keys [N] for dropout or None -> [N]."""
    (first, first_pieces), *others = zip(self.units, self.pieces, strict=True)
    one_hot = _one_hot(labels, self.num_classes, x) if self.num_classes else None
    x = Maxout(first, first_pieces, name="maxout_0")(dropout(x, keys, 0, self.keep_pixels))
    if one_hot is not None:
      of_label = Maxout(self.label_units, first_pieces, 0.005 * WIDER, name="maxout_0_of_label")(one_hot)
      x = jnp.concatenate([x, of_label], axis=1)
    for layer, (units, pieces) in enumerate(others, start=1):
      x = Maxout(units, pieces, name=f"maxout_{layer}")(dropout(x, keys, layer, self.keep))
    x = dropout(x, keys, len(self.units), self.keep)
    return nn.Dense(1, kernel_init=symmetric_uniform(0.005), name="linear")(x)[:, 0]


def _one_hot(labels: jax.Array | None, num_classes: int, like: jax.Array) -> jax.Array:
  if labels is None:
    raise ValueError(f"labels are missing: the network is conditional on {num_classes} classes")
  return jax.nn.one_hot(labels, num_classes, dtype=like.dtype)
