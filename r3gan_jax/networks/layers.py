"""Layers that networks of several GANs use."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.ops.strided_conv import strided_conv, transposed_conv

LEAKY_SLOPE = 0.2
"""Of the LeakyReLUs of nearly all GANs."""

MOMENTS = "moments"
"""The collection of batch norm's running moments."""


class BatchNorm(nn.Module):
  """Normalises every channel over the batch and all places (Ioffe and Szegedy 2015, arXiv 1502.03167).

  In training by the moments of the batch; where the collection `MOMENTS` is mutable, running moments follow them: the
  mean and the mean *square*, whose averages over networks or devices are moments again, as a variance's are not.
  Otherwise by the running moments, so that a sample's result is its own.

  Attributes:
    axis_name: the mesh axis that the batch is divided over: its moments are of all of it.
    affine: whether there are a scale and a bias.
    scale_stddev: of the scale's initial values around 1.
    decay: of the running moments, an update.
    epsilon: added to the variance.
  """

  axis_name: str
  affine: bool = True
  scale_stddev: float = 0.02
  decay: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, ..., C] -> the same."""
    channels = x.shape[-1:]
    mean = self.variable(MOMENTS, "mean", jnp.zeros, channels)
    mean_square = self.variable(MOMENTS, "mean_square", jnp.ones, channels)
    if train:
      axes = tuple(range(x.ndim - 1))
      of_batch = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
      moments = jax.lax.pmean(of_batch, self.axis_name)
      if self.is_mutable_collection(MOMENTS):
        for running, moment in zip((mean, mean_square), moments, strict=True):
          running.value += (1 - self.decay) * (moment - running.value)
    else:
      moments = mean.value, mean_square.value
    center, square = (moment.reshape((1,) * (x.ndim - 1) + channels) for moment in moments)
    variance = jnp.maximum(square - jnp.square(center), 0)
    x = (x - center) * jax.lax.rsqrt(variance + self.epsilon)
    if not self.affine:
      return x
    scale = self.param("scale", lambda key: 1 + self.scale_stddev * jax.random.normal(key, channels))
    bias = self.param("bias", nn.initializers.zeros, channels)
    return x * scale.reshape(center.shape) + bias.reshape(center.shape)


def apply_in_training(network: nn.Module, params: Any, moments: Any, *inputs: jax.Array) -> tuple[jax.Array, Any]:
  """Returns what a network with batch norm makes of a batch, by its moments, and the running moments that follow it."""
  result, state = network.apply({"params": params, MOMENTS: moments}, *inputs, train=True, mutable=[MOMENTS])
  return cast(jax.Array, result), state[MOMENTS]


class StridedConv(nn.Module):
  """Halves the resolution; weights N(0, stddev), no bias; on every side (kernel_size - 1) // 2 of padding."""

  features: int
  kernel_size: int = 4
  stddev: float = 0.02

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, 2H, 2W, C] -> [N, H, W, features]."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    padding = (self.kernel_size - 1) // 2
    return strided_conv(x, self.param("kernel", nn.initializers.normal(self.stddev), shape), (padding, padding))


class TransposedConv(nn.Module):
  """Doubles the resolution: the adjoint of `StridedConv`, as which it is initialised."""

  features: int
  kernel_size: int = 4
  stddev: float = 0.02

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, features]."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    before = (self.kernel_size - 1) // 2
    padding = (before, self.kernel_size - 2 - before)
    return transposed_conv(x, self.param("kernel", nn.initializers.normal(self.stddev), shape), padding)
