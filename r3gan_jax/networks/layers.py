"""Layers shared by the networks of several GANs."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.ops.broadcast import broadcast_as
from r3gan_jax.ops.grouped_conv import grouped_conv, pointwise_conv
from r3gan_jax.ops.resample import upsample2x
from r3gan_jax.ops.strided_conv import strided_conv, transposed_conv

LEAKY_SLOPE = 0.2
"""The negative slope of LeakyReLU in nearly all GANs."""
LEAKY_GAIN = math.sqrt(2 / (1 + LEAKY_SLOPE**2))
"""The gain for LeakyReLU in the initialisation of He et al. (2015, arXiv 1502.01852)."""

MOMENTS = "moments"
"""The Flax collection of batch norm's running moments."""
_MOMENTS_DECAY = 0.9  # per update

normal_init = nn.initializers.normal(0.02)
"""N(0, 0.02^2), DCGAN's initialiser (Radford et al. 2016, arXiv 1511.06434)."""


class PointwiseConv(nn.Module):
  """A bias-free 1x1 convolution, or linear layer, to `width` channels."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] or [N, C] -> the same shape with `width` channels, in x's dtype."""
    fan_in = x.shape[-1]
    return pointwise(x, self.param("kernel", scaled_normal(1.0, fan_in), (fan_in, self.width)))


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Applies a kernel [I, O] as a 1x1 convolution to [N, H, W, I] or a linear map to [N, I], in x's dtype."""
  kernel = kernel.astype(x.dtype)
  return pointwise_conv(x, kernel) if x.ndim == 4 else x @ kernel


def scaled_normal(gain: float, fan_in: int) -> nn.initializers.Initializer:
  """Returns the initialiser N(0, gain^2 / fan_in)."""
  return nn.initializers.normal(gain / math.sqrt(fan_in))


def per_sample_bias(bias: jax.Array, bias_scale: jax.Array | None, samples: int) -> jax.Array:
  """Returns [samples, C]: bias [C] times bias_scale [samples], default ones."""
  if bias_scale is None:
    return jnp.broadcast_to(bias[None], (samples, *bias.shape))
  return bias[None] * bias_scale.astype(bias.dtype)[:, None]


def add_bias(x: jax.Array, bias: jax.Array, bias_scale: jax.Array | None) -> jax.Array:
  """Adds `per_sample_bias` to x [N, H, W, C]."""
  return x + broadcast_as(per_sample_bias(bias, bias_scale, x.shape[0])[:, None, None], x)


def bias_activate(x: jax.Array, bias: jax.Array, bias_scale: jax.Array | None) -> jax.Array:
  """Applies `add_bias`, then LeakyReLU."""
  x = add_bias(x, bias, bias_scale)
  return jnp.where(x > 0, x, LEAKY_SLOPE * x)


class ClassEmbedding(nn.Module):
  """A bias-free linear map of the one-hot label, initialised as N(0, gain^2 / num_classes)."""

  num_classes: int
  embed_dim: int
  gain: float

  @nn.compact
  def __call__(self, labels: jax.Array | None) -> jax.Array:
    """Labels [N] int32 -> [N, embed_dim] float32."""
    if labels is None:
      raise ValueError(f"labels are missing: the network is conditional on {self.num_classes} classes")
    kernel = self.param("kernel", scaled_normal(self.gain, fan_in=self.num_classes), (self.num_classes, self.embed_dim))
    return jax.nn.one_hot(labels, self.num_classes, dtype=kernel.dtype) @ kernel


class _Conditional(Protocol):
  """A network with `num_classes` classes, 0 if unconditional."""

  @property
  def num_classes(self) -> int: ...

  @property
  def embed_dim(self) -> int: ...


def with_embedding(network: _Conditional, z: jax.Array, labels: jax.Array | None) -> jax.Array:
  """Appends the class embedding to z [N, D] if `network` is conditional; call it in its compact method."""
  if not network.num_classes:
    return z
  embedding = ClassEmbedding(network.num_classes, network.embed_dim, gain=1.0, name="class_embedding")
  return jnp.concatenate([z, embedding(labels)], axis=-1)


def projection_logits(network: _Conditional, features: jax.Array, labels: jax.Array | None) -> jax.Array:
  """Projects features [N, embed_dim] onto the class embedding (Miyato and Koyama 2018, arXiv 1802.05637).

  Call it in the compact method of `network`. Unconditional: features [N, 1] -> logits [N].
  """
  if not network.num_classes:
    return features[:, 0]
  gain = 1 / math.sqrt(network.embed_dim)
  embedding = ClassEmbedding(network.num_classes, network.embed_dim, gain=gain, name="class_embedding")
  return jnp.sum(features * embedding(labels), axis=-1)


class _Staged(Protocol):
  """A network of stages, 4x4 first; the last `bfloat16_stages` compute in bfloat16."""

  @property
  def widths(self) -> Sequence[int]: ...

  @property
  def bfloat16_stages(self) -> int: ...


def stage_dtype(network: _Staged, stage: int) -> jnp.dtype:
  """Returns the dtype in which a stage computes."""
  bfloat16 = stage >= len(network.widths) - network.bfloat16_stages
  return jnp.dtype(jnp.bfloat16) if bfloat16 else full_precision()


def full_precision() -> jnp.dtype:
  """Returns float32, or float64 under jax_enable_x64 (for reference computations)."""
  return jnp.result_type(float)


def sum_of_skips(images: Iterable[jax.Array]) -> jax.Array:
  """Sums the images of all stages, 4x4 first, in full precision; upsamples the sum between stages."""
  return reduce(lambda image, addition: upsample2x(image) + addition, (x.astype(full_precision()) for x in images))


class BatchNorm(nn.Module):
  """Batch normalisation over the batch and all pixels (Ioffe and Szegedy 2015, arXiv 1502.03167).

  In training, the batch's moments normalise, and the running moments are updated if the collection `MOMENTS` is
  mutable. They are the mean and the mean *square*, which, unlike a variance, may be averaged over networks and devices.
  Otherwise the running moments normalise, and a sample does not depend on the rest of its batch.

  Attributes:
    axis_name: the mesh axis over which the batch is sharded; moments are those of the global batch.
    affine: whether there are a scale, initially N(1, 0.02^2), and a bias.
  """

  axis_name: str
  affine: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, ..., C] -> [N, ..., C]."""
    channels = x.shape[-1:]
    mean = self.variable(MOMENTS, "mean", jnp.zeros, channels)
    mean_square = self.variable(MOMENTS, "mean_square", jnp.ones, channels)
    if train:
      axes = tuple(range(x.ndim - 1))
      local_moments = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
      moments = jax.lax.pmean(local_moments, self.axis_name)
      if self.is_mutable_collection(MOMENTS):
        for running, moment in zip((mean, mean_square), moments, strict=True):
          running.value += (1 - _MOMENTS_DECAY) * (moment - running.value)
    else:
      moments = mean.value, mean_square.value
    center, square = (moment.reshape((1,) * (x.ndim - 1) + channels) for moment in moments)
    variance = jnp.maximum(square - jnp.square(center), 0)
    x = (x - center) * jax.lax.rsqrt(variance + 1e-5)
    if not self.affine:
      return x
    scale = self.param("scale", lambda key: 1 + normal_init(key, channels))
    bias = self.param("bias", nn.initializers.zeros, channels)
    return x * scale.reshape(center.shape) + bias.reshape(center.shape)


def apply_in_training(network: nn.Module, params: Any, moments: Any, *inputs: jax.Array) -> tuple[jax.Array, Any]:
  """Applies a network with batch norm in training mode; returns (output, updated running moments)."""
  result, state = network.apply({"params": params, MOMENTS: moments}, *inputs, train=True, mutable=[MOMENTS])
  return cast(jax.Array, result), state[MOMENTS]


def moments_of_batch(network: nn.Module, params: Any, moments: Any, *inputs: jax.Array) -> Any:
  """Returns the moments of this batch alone, in the form of the running `moments`."""
  _, updated = apply_in_training(network, params, jax.tree.map(jnp.zeros_like, moments), *inputs)
  return jax.tree.map(lambda share: share / (1 - _MOMENTS_DECAY), updated)


def apply_trained(network: nn.Module, params: Any, moments: Any, *inputs: jax.Array) -> jax.Array:
  """Applies a network with batch norm in inference mode: its running moments normalise."""
  return cast(jax.Array, network.apply({"params": params, MOMENTS: moments}, *inputs, train=False))


def dropout(x: jax.Array, keys: jax.Array | None, layer: int, keep: float) -> jax.Array:
  """Zeroes features of x [N, ...] with probability 1 - keep, and divides the others by `keep`.

  Args:
    keys: [N], one per sample; None: x is returned.
    layer: its number in the network; each draws a mask of its own.
  """
  if keys is None or keep == 1:
    return x
  kept = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), keep, x.shape[1:]))(keys)
  return jnp.where(kept, x / keep, 0)


plain_conv = partial(grouped_conv, groups=1)


class Conv(nn.Module):
  """A 3x3 convolution, perhaps with a bias.

  Attributes:
    operation: (x, kernel) -> y; one of ops/strided_conv.py changes the resolution.
  """

  features: int
  kernel_init: nn.initializers.Initializer
  operation: Callable[[jax.Array, jax.Array], jax.Array] = plain_conv
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H', W', features]."""
    x = self.operation(x, self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features)))
    return x + _bias_map(self) if self.use_bias else x


class StridedConv(nn.Module):
  """A convolution of stride 2, with padding (kernel_size - 1) // 2, weights N(0, 0.02^2) and perhaps a bias."""

  features: int
  kernel_size: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, 2H, 2W, C] -> [N, H, W, features]."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    padding = (self.kernel_size - 1) // 2
    x = strided_conv(x, self.param("kernel", normal_init, shape), (padding, padding))
    return x + _bias_map(self) if self.use_bias else x


class TransposedConv(nn.Module):
  """The transpose of `StridedConv`, with the same initialisation."""

  features: int
  kernel_size: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, 2H, 2W, features]."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    before = (self.kernel_size - 1) // 2
    padding = (before, self.kernel_size - 2 - before)
    x = transposed_conv(x, self.param("kernel", normal_init, shape), padding)
    return x + _bias_map(self) if self.use_bias else x


def _bias_map(conv: Conv | StridedConv | TransposedConv) -> jax.Array:
  """Returns the bias [1, 1, 1, C] of a convolution; called in its compact method."""
  return conv.param("bias", nn.initializers.zeros, (conv.features,))[None, None, None]
