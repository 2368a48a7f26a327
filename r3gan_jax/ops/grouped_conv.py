"""Grouped 2-D convolution whose every derivative is fast.

XLA's grouped convolution is tolerable forwards, but on CPUs (and GPUs, jax issue 13800) its gradients
are slower than those of a dense convolution. Here the convolution is a bilinear primitive. Two
operations, each the other's transpose, are closed under differentiation of any order:

    conv(x, w)                   [N, H, W, G*I], [kh, kw, I, G*O]   -> [N, H', W', G*O]
    weight_gradient(x, dy)       [N, H, W, G*I], [N, H', W', G*O]   -> [kh, kw, I, G*O]

    d conv / dx            = conv with the kernel flipped in space, I and O exchanged
    d conv / dw            = weight_gradient
    d weight_gradient / dx = conv of dy, with the flipped, exchanged kernel cotangent
    d weight_gradient / dy = conv of x, with the kernel cotangent

so each needs one good algorithm a platform, and the second derivatives of gradient penalties are as
fast as the first.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def grouped_conv(x: jax.Array, kernel: jax.Array, groups: int, padding: Padding | None = None) -> jax.Array:
  """Convolves each of `groups` consecutive blocks of channels with its own kernel, at stride 1.

  Args:
    x: [N, H, W, groups * I].
    kernel: [kh, kw, I, groups * O], of x's dtype; output channels are ordered by group.
    groups: the number of groups (the paper's *cardinality*).
    padding: zeros put ((above, below), (left of, right of)) the image; default: such that the output
      has the input's size.

  Returns:
    [N, H', W', groups * O], of x's dtype.

  Raises:
    ValueError: where the shapes, or the dtypes, do not fit together.
  """
  kernel_height, kernel_width, in_per_group, out_channels = kernel.shape
  if x.ndim != 4 or x.shape[-1] != groups * in_per_group or out_channels % groups:
    raise ValueError(
      f"grouped_conv: x {x.shape} and kernel {kernel.shape} do not fit {groups} groups: x needs "
      "[N, H, W, groups * I] and the kernel [kh, kw, I, groups * O]"
    )
  if x.dtype != kernel.dtype:
    raise ValueError(f"grouped_conv: x is {x.dtype} but the kernel is {kernel.dtype}")
  if padding is None:
    padding = ((kernel_height - 1) // 2, kernel_height // 2), ((kernel_width - 1) // 2, kernel_width // 2)
  x, kernel = _match_varying_axes(x, kernel)
  return _conv_p.bind(x, kernel, groups=groups, padding=padding)


def _match_varying_axes(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Under `shard_map`, casts a replicated operand beside a sharded one to 'varying', as lax's own operations do."""
  x_axes, y_axes = jax.typeof(x).mat.varying, jax.typeof(y).mat.varying
  if missing := tuple(y_axes - x_axes):
    x = lax.pcast(x, missing, to="varying")
  if missing := tuple(x_axes - y_axes):
    y = lax.pcast(y, missing, to="varying")
  return x, y


def _flip_exchange(kernel: jax.Array, groups: int) -> jax.Array:
  """[kh, kw, I, G*O] -> [kh, kw, O, G*I], flipped in space: the kernel of the convolution's transpose."""
  height, width, inputs, outputs = kernel.shape
  kernel = kernel[::-1, ::-1].reshape(height, width, inputs, groups, outputs // groups)
  return kernel.transpose(0, 1, 4, 3, 2).reshape(height, width, outputs // groups, groups * inputs)


def _transposed_padding(padding: Padding, kernel_size: tuple[int, int]) -> Padding:
  (top, bottom), (left, right) = padding
  height, width = kernel_size
  return (height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right)


# Algorithms. Each computes one of the two operations; they agree to rounding.


def _conv_native(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS, feature_group_count=groups)


def _conv_mapped(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  """One plain convolution a group."""

  def one_group(operands: tuple[jax.Array, jax.Array]) -> jax.Array:
    return _conv_native(*operands, groups=1, padding=padding)

  y = lax.map(one_group, (_split_groups(x, groups), _split_groups(kernel, groups)))
  return _join_groups(y)


def _weight_gradient_native(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int]
) -> jax.Array:
  """XLA's own gradient of its grouped convolution with respect to the kernel (linear in it: any point serves)."""
  shape = (*kernel_size, x.shape[-1] // groups, dy.shape[-1])
  conv = partial(_conv_native, x, groups=groups, padding=padding)
  (gradient,) = jax.linear_transpose(conv, jax.ShapeDtypeStruct(shape, x.dtype))(dy)
  return gradient


def _weight_gradient_im2col(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int]
) -> jax.Array:
  """Per group: the patches of that group alone as a matrix, and one matrix product."""
  height, width = kernel_size
  batch, out_height, out_width, _ = dy.shape
  in_per_group, out_per_group = x.shape[-1] // groups, dy.shape[-1] // groups
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))

  def one_group(operands: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, dy = operands
    patches = jnp.stack(
      [x[:, i : i + out_height, j : j + out_width] for i in range(height) for j in range(width)], axis=3
    )
    patches = patches.reshape(batch * out_height * out_width, height * width * in_per_group)
    dy = dy.reshape(batch * out_height * out_width, out_per_group)
    return jnp.einsum("mk,mo->ko", patches, dy).reshape(height, width, in_per_group, out_per_group)

  return _join_groups(lax.map(one_group, (_split_groups(x, groups), _split_groups(dy, groups))))


def _split_groups(x: jax.Array, groups: int) -> jax.Array:
  """[..., G*C] -> [G, ..., C]."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], groups, -1), -2, 0)


def _join_groups(x: jax.Array) -> jax.Array:
  """[G, ..., C] -> [..., G*C]."""
  x = jnp.moveaxis(x, 0, -2)
  return x.reshape(*x.shape[:-2], -1)


def _conv_cpu(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  algorithm = _conv_native if groups == 1 else _conv_mapped
  return algorithm(x, kernel, groups=groups, padding=padding)


# The two primitives.


def _conv_abstract(x, kernel, *, groups, padding):
  sizes = _conv_output_size(x.shape[1:3], kernel.shape[:2], padding)
  return x.update(shape=(x.shape[0], *sizes, kernel.shape[-1]), weak_type=False)


def _conv_output_size(size: tuple[int, int], kernel_size: tuple[int, int], padding: Padding) -> tuple[int, int]:
  height, width = (n + sum(pad) - k + 1 for n, pad, k in zip(size, padding, kernel_size, strict=True))
  return height, width


def _weight_gradient_abstract(x, dy, *, groups, padding, kernel_size):
  return x.update(shape=(*kernel_size, x.shape[-1] // groups, dy.shape[-1]), weak_type=False)


def _conv_transpose_x(dy, x, kernel, *, groups, padding):
  del x
  return _conv_p.bind(
    dy, _flip_exchange(kernel, groups), groups=groups, padding=_transposed_padding(padding, kernel.shape[:2])
  )


def _conv_transpose_kernel(dy, x, kernel, *, groups, padding):
  return _weight_gradient_p.bind(x, dy, groups=groups, padding=padding, kernel_size=kernel.aval.shape[:2])


def _weight_gradient_transpose_x(dw, x, dy, *, groups, padding, kernel_size):
  del x
  return _conv_p.bind(dy, _flip_exchange(dw, groups), groups=groups, padding=_transposed_padding(padding, kernel_size))


def _weight_gradient_transpose_dy(dw, x, dy, *, groups, padding, kernel_size):
  del dy, kernel_size
  return _conv_p.bind(x, dw, groups=groups, padding=padding)


def _batch(primitive, operands, dimensions, *, groups, **params):
  """vmap: the mapped axis joins the groups, so a batch of convolutions is one convolution of more groups.

  Where only x is mapped, it joins the batch of a convolution instead.
  """
  (x, y), (x_dim, y_dim) = operands, dimensions
  size = next(a.shape[d] for a, d in zip(operands, dimensions, strict=True) if d is not None)
  if primitive is _conv_p and y_dim is None:
    x = jnp.moveaxis(x, x_dim, 0)
    out = primitive.bind(x.reshape(-1, *x.shape[2:]), y, groups=groups, **params)
    return out.reshape(size, -1, *out.shape[1:]), 0
  x, y = (
    _join_groups(jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0))
    for a, d in zip((x, y), (x_dim, y_dim), strict=True)
  )
  return _split_groups(primitive.bind(x, y, groups=size * groups, **params), size), 0


def _define(name: str, abstract: Callable, transpose_lhs: Callable, transpose_rhs: Callable) -> Primitive:
  primitive = Primitive(name)
  primitive.def_abstract_eval(abstract)
  primitive.def_impl(lambda x, y, **params: jax.jit(partial(primitive.bind, **params))(x, y))
  ad.defbilinear(primitive, transpose_lhs, transpose_rhs)
  batching.primitive_batchers[primitive] = partial(_batch, primitive)
  return primitive


def _lower(primitive: Primitive, algorithm: Callable, platform: str | None = None) -> None:
  mlir.register_lowering(primitive, mlir.lower_fun(algorithm, multiple_results=False), platform=platform)


_conv_p = _define("r3gan_grouped_conv", _conv_abstract, _conv_transpose_x, _conv_transpose_kernel)
_weight_gradient_p = _define(
  "r3gan_grouped_conv_weight_gradient",
  _weight_gradient_abstract,
  _weight_gradient_transpose_x,
  _weight_gradient_transpose_dy,
)
_lower(_conv_p, _conv_native)
_lower(_conv_p, _conv_cpu, "cpu")
_lower(_weight_gradient_p, _weight_gradient_native)
_lower(_weight_gradient_p, _weight_gradient_im2col, "cpu")
