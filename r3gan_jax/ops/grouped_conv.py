"""Grouped 2-D convolution that is fast in every derivative.

The gradients of XLA's grouped convolution are slower than those of a dense one on CPUs, and on GPUs (jax issue 13800).
Here the convolution is a bilinear primitive. Two operations, each a transpose of the other, are closed under
differentiation of any order:

    conv(x, w)                   [N, H, W, G*I], [kh, kw, I, G*O]   -> [N, H', W', G*O]
    weight_gradient(x, dy)       [N, H, W, G*I], [N, H', W', G*O]   -> [kh, kw, I, G*O]

    d conv / dx            = conv with the kernel flipped in space, I and O exchanged
    d conv / dw            = weight_gradient
    d weight_gradient / dx = conv of dy, with the flipped, exchanged kernel cotangent
    d weight_gradient / dy = conv of x, with the kernel cotangent

so each needs one fast algorithm per platform, and the second derivatives of gradient penalties are as fast as first
ones. The 1x1 convolution of one group, a matrix product, is included for the same reason.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from r3gan_jax.ops import grouped_conv_cpu, grouped_conv_tiling, grouped_conv_tpu
from r3gan_jax.ops.padding import Padding, output_shape, same_padding, transposed_padding
from r3gan_jax.ops.partitioning import keep_batch_split, needs_devices_in_lowering

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def grouped_conv(
  x: jax.Array, kernel: jax.Array, groups: int, padding: Padding | None = None, algorithm: str = "auto"
) -> jax.Array:
  """Convolves each of `groups` consecutive blocks of channels with its own kernel, at stride 1.

  Args:
    x: [N, H, W, groups * I].
    kernel: [kh, kw, I, groups * O], of x's dtype; output channels are ordered by group.
    groups: the number of groups (the paper's *cardinality*).
    padding: default: `same_padding`.
    algorithm: a key of `ALGORITHMS`, also used in every derivative; "auto": `choose` decides for the platform that the
      program is compiled for.

  Returns:
    [N, H', W', groups * O], of x's dtype.

  Raises:
    ValueError: shapes or dtypes do not fit, or the algorithm is unknown.
  """
  kernel_height, kernel_width, in_per_group, out_channels = kernel.shape
  if x.ndim != 4 or x.shape[-1] != groups * in_per_group or out_channels % groups:
    raise ValueError(
      f"grouped_conv: x {x.shape} and kernel {kernel.shape} do not fit {groups} groups: x needs "
      "[N, H, W, groups * I] and the kernel [kh, kw, I, groups * O]"
    )
  if x.dtype != kernel.dtype:
    raise ValueError(f"grouped_conv: x is {x.dtype} but the kernel is {kernel.dtype}")
  if algorithm not in ("auto", *ALGORITHMS):
    raise ValueError(f"grouped_conv: unknown algorithm {algorithm!r}: choose from {['auto', *ALGORITHMS]}")
  if algorithm != "auto" and groups % ALGORITHMS[algorithm].merge:
    raise ValueError(f"grouped_conv: {algorithm} does not fit {groups} groups: it merges {ALGORITHMS[algorithm].merge}")
  if padding is None:
    padding = same_padding((kernel_height, kernel_width))
  x, kernel = match_varying_axes(x, kernel)
  return _conv_p.bind(x, kernel, groups=groups, padding=padding, algorithm=algorithm, operation="conv")


def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Applies a 1x1 convolution: [N, H, W, I], [I, O] of one dtype -> [N, H, W, O]."""
  return grouped_conv(x, kernel[None, None], groups=1)


def weight_gradient(
  x: jax.Array, dy: jax.Array, groups: int, padding: Padding, kernel_size: tuple[int, int]
) -> jax.Array:
  """The transpose of `grouped_conv` in its kernel: [N, H, W, G*I], [N, H', W', G*O] -> [kh, kw, I, G*O]."""
  return _weight_gradient_p.bind(x, dy, groups=groups, padding=padding, kernel_size=kernel_size, algorithm="auto")


OPERATIONS = ("conv", "input_gradient", "weight_gradient")


class Shape(NamedTuple):
  """A convolution or weight gradient, as far as it decides which algorithm is the fastest; its batch does not.

  Attributes:
    operation: one of `OPERATIONS`; an input gradient is a conv whose kernel has been flipped and exchanged.
    height, width: of the input x.
    groups: number of groups.
    inputs, outputs: channels per group.
    kernel_size: (height, width).
    dtype: of the operands.
  """

  operation: str
  height: int
  width: int
  groups: int
  inputs: int
  outputs: int
  kernel_size: tuple[int, int]
  dtype: str


MEASURED: dict[tuple[str, Shape], str] = {}
"""(platform, shape) -> the fastest algorithm on the device at hand, set before a program is compiled."""


def choose(platform: str, shape: Shape, portable: bool = False) -> str:
  """Returns the algorithm for a shape on a platform, JAX's "cpu", "tpu" or another.

  It is what has been measured in this process (training/autotuning.py), or else a rule, of measurements by
  benchmarks/grouped_conv.py (CPU) and benchmarks/tpu.py (TPU). `portable` programs have no kernels of ours, and do not
  depend on what was measured where they are made.
  """
  groups, inputs, outputs = shape.groups, shape.inputs, shape.outputs
  if not portable and (platform, shape) in MEASURED:
    return MEASURED[platform, shape]
  if platform == "cpu" and not portable and grouped_conv_cpu.supports(outputs, jnp.dtype(shape.dtype)):
    return "compiled"
  if platform == "cpu":
    return "per_group"
  if groups == 1:
    return "native"
  if platform == "tpu" and not portable and grouped_conv_tiling.supports(groups, inputs, outputs):
    return "pallas"
  return "native"


def match_varying_axes(*operands: jax.Array) -> list[jax.Array]:
  """Casts replicated operands beside sharded ones to 'varying' under `shard_map`, as lax's own operations do."""
  axes = [jax.typeof(x).mat.varying for x in operands]
  missing = [tuple(set().union(*axes) - own) for own in axes]
  return [lax.pcast(x, new, to="varying") if new else x for x, new in zip(operands, missing, strict=True)]


def flip_exchange(kernel: jax.Array, groups: int) -> jax.Array:
  """Returns the kernel of the transposed convolution: [kh, kw, I, G*O] -> [kh, kw, O, G*I], flipped in space."""
  height, width, inputs, outputs = kernel.shape
  kernel = kernel[::-1, ::-1].reshape(height, width, inputs, groups, outputs // groups)
  return kernel.transpose(0, 1, 4, 3, 2).reshape(height, width, outputs // groups, groups * inputs)


# Algorithms: each computes both operations; they agree up to rounding.


def _conv_native(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS, feature_group_count=groups)


def _weight_gradient_native(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int]
) -> jax.Array:
  """Computes XLA's own gradient in the kernel; the convolution is linear in it, so any kernel serves as the point."""
  # For a kernel replicated under shard_map, JAX would sum the gradient over devices.
  _, kernel = match_varying_axes(x, jnp.zeros((*kernel_size, x.shape[-1] // groups, dy.shape[-1]), x.dtype))
  _, pull_back = jax.vjp(partial(_conv_native, x, groups=groups, padding=padding), kernel)
  (gradient,) = pull_back(dy)
  return gradient


def _conv_per_group(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  """Computes one plain convolution per group."""

  def one_group(operands: tuple[jax.Array, jax.Array]) -> jax.Array:
    return _conv_native(*operands, groups=1, padding=padding)

  return _join_groups(lax.map(one_group, (_split_groups(x, groups), _split_groups(kernel, groups))))


def _weight_gradient_per_group(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int]
) -> jax.Array:
  """Computes, per group, matrix products with patches (im2col), in the way that is fastest on CPUs for the shape.

  Patches of a whole batch do not fit the caches, unless images are small; and patches of dy are smaller than those of x
  if there are fewer outputs than inputs.
  """
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  if 4 * dy.shape[-1] <= x.shape[-1]:
    way = _product_with_patches_of_dy
  elif dy.shape[1] * dy.shape[2] >= _PIXELS_OF_ONE_PRODUCT and max(kernel_size) > 1:
    way = _products_of_each_image
  else:
    way = _product_with_patches

  def one_group(operands: tuple[jax.Array, jax.Array]) -> jax.Array:
    return way(*operands, kernel_size)

  return _join_groups(lax.map(one_group, (_split_groups(x, groups), _split_groups(dy, groups))))


_PIXELS_OF_ONE_PRODUCT = 256
"""From so many pixels of dy on, the products of each image are faster than one of the batch."""

# Three ways to compute a weight gradient: padded x [N, H, W, I], dy [N, H', W', O], (kh, kw) -> [kh, kw, I, O].


def _product_with_patches(x: jax.Array, dy: jax.Array, kernel_size: tuple[int, int]) -> jax.Array:
  """Computes one product."""
  (height, width), (batch, out_height, out_width, outputs) = kernel_size, dy.shape
  patches = jnp.stack(
    [x[:, i : i + out_height, j : j + out_width] for i in range(height) for j in range(width)], axis=3
  )
  patches = patches.reshape(batch * out_height * out_width, height * width * x.shape[-1])
  product = jnp.einsum("mk,mo->ko", patches, dy.reshape(batch * out_height * out_width, outputs))
  return product.reshape(height, width, -1, outputs)


def _product_with_patches_of_dy(x: jax.Array, dy: jax.Array, kernel_size: tuple[int, int]) -> jax.Array:
  """Computes one product: for entry (i, j) of the kernel, pixel (r, s) of x meets pixel (r - i, s - j) of dy."""
  (height, width), (batch, in_height, in_width, inputs) = kernel_size, x.shape
  dy = jnp.pad(dy, ((0, 0), (height - 1,) * 2, (width - 1,) * 2, (0, 0)))
  patches = jnp.stack(
    [dy[:, i : i + in_height, j : j + in_width] for i in reversed(range(height)) for j in reversed(range(width))],
    axis=3,
  )
  patches = patches.reshape(batch * in_height * in_width, height * width * dy.shape[-1])
  product = jnp.einsum("mi,mk->ik", x.reshape(batch * in_height * in_width, inputs), patches)
  return product.reshape(inputs, height, width, -1).transpose(1, 2, 0, 3)


def _products_of_each_image(x: jax.Array, dy: jax.Array, kernel_size: tuple[int, int]) -> jax.Array:
  """Computes, for each image and each row of the kernel, a product with patches of one row."""
  (height, width), (batch, out_height, out_width, outputs) = kernel_size, dy.shape
  rows = jnp.concatenate([x[:, :, j : j + out_width] for j in range(width)], axis=3)
  rows = lax.optimization_barrier(rows.reshape(batch, x.shape[1] * out_width, width * x.shape[-1]))
  pixels = out_height * out_width

  def add(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    rows, dy = image
    starts = range(0, height * out_width, out_width)
    return total + jnp.stack([jnp.einsum("mk,mo->ok", rows[i : i + pixels], dy) for i in starts]), None

  zeros = jnp.zeros((height, outputs, width * x.shape[-1]), x.dtype)
  dy = dy.reshape(batch, pixels, outputs)
  total, _ = lax.scan(add, match_varying_axes(zeros, dy)[0], (rows, dy))
  return total.swapaxes(1, 2).reshape(height, width, -1, outputs)


def _conv_merged(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding, merge: int) -> jax.Array:
  """Computes with `merge` neighbouring groups as one, whose kernel is block-diagonal: wider groups suit GPUs better."""
  height, width, inputs, outputs = kernel.shape
  blocks = kernel.reshape(height, width, 1, inputs, groups // merge, merge, -1)
  kernel = _diagonal(blocks, merge).reshape(height, width, merge * inputs, outputs)
  return _conv_native(x, kernel, groups=groups // merge, padding=padding)


def _weight_gradient_merged(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int], merge: int
) -> jax.Array:
  """Computes the gradient of the block-diagonal kernel, and keeps its blocks."""
  gradient = _weight_gradient_native(x, dy, groups=groups // merge, padding=padding, kernel_size=kernel_size)
  blocks = gradient.reshape(*kernel_size, merge, -1, groups // merge, merge, dy.shape[-1] // groups)
  return _diagonal(blocks, merge).sum(2).reshape(*kernel_size, -1, dy.shape[-1])


def _diagonal(blocks: jax.Array, merge: int) -> jax.Array:
  """Returns blocks [kh, kw, merge or 1, I, groups, merge, O], and zeros where the two group axes differ."""
  return jnp.where(jnp.eye(merge, dtype=bool)[:, None, None, :, None], blocks, jnp.zeros((), blocks.dtype))


class Algorithm(NamedTuple):
  """One way to compute both operations; it takes groups in multiples of `merge`."""

  conv: Callable[..., jax.Array]
  weight_gradient: Callable[..., jax.Array]
  merge: int = 1


def _merged(merge: int) -> Algorithm:
  return Algorithm(partial(_conv_merged, merge=merge), partial(_weight_gradient_merged, merge=merge), merge)


ALGORITHMS: dict[str, Algorithm] = {
  "native": Algorithm(_conv_native, _weight_gradient_native),
  "per_group": Algorithm(_conv_per_group, _weight_gradient_per_group),
  "compiled": Algorithm(grouped_conv_cpu.conv, grouped_conv_cpu.weight_gradient),
  "pallas": Algorithm(grouped_conv_tpu.conv, grouped_conv_tpu.weight_gradient),
  "merged_2": _merged(2),
  "merged_4": _merged(4),
  "merged_8": _merged(8),
}


# A 1x1 convolution of one group is a matrix product with every algorithm.


def _conv_pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jnp.einsum("nhwi,io->nhwo", x, kernel[0, 0])


def _weight_gradient_pointwise(x: jax.Array, dy: jax.Array) -> jax.Array:
  return jnp.einsum("nhwi,nhwo->io", x, dy)[None, None]


def _weight_gradient_pointwise_cpu(x: jax.Array, dy: jax.Array) -> jax.Array:
  """Uses pixels as rows: XLA's CPU product over several axes takes up to twice as long. On TPUs it would copy."""
  return (x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1]))[None, None]


_POINTWISE = Algorithm(_conv_pointwise, _weight_gradient_pointwise)
_POINTWISE_CPU = Algorithm(_conv_pointwise, _weight_gradient_pointwise_cpu)


def _is_pointwise(kernel_size: tuple[int, ...], groups: int, padding: Padding) -> bool:
  return (*kernel_size, groups) == (1, 1, 1) and padding == ((0, 0), (0, 0))


def _split_groups(x: jax.Array, groups: int) -> jax.Array:
  """[..., G*C] -> [G, ..., C]."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], groups, -1), -2, 0)


def _join_groups(x: jax.Array) -> jax.Array:
  """[G, ..., C] -> [..., G*C]."""
  x = jnp.moveaxis(x, 0, -2)
  return x.reshape(*x.shape[:-2], -1)


# The two primitives.


def _conv_abstract(x, kernel, *, groups, padding, algorithm, operation):
  del groups, algorithm, operation
  return x.update(shape=output_shape(x.shape, kernel.shape, padding), weak_type=False)


def _weight_gradient_abstract(x, dy, *, groups, padding, kernel_size, algorithm):
  del padding, algorithm
  return x.update(shape=(*kernel_size, x.shape[-1] // groups, dy.shape[-1]), weak_type=False)


def _transposed_conv(dy, kernel, *, operation, groups, padding, **params):
  padding, kernel = transposed_padding(padding, kernel.shape[:2]), flip_exchange(kernel, groups)
  return _conv_p.bind(dy, kernel, groups=groups, padding=padding, operation=operation, **params)


def _conv_transpose_x(dy, x, kernel, *, operation, **params):
  del x
  other = "conv" if operation == "input_gradient" else "input_gradient"
  return _transposed_conv(dy, kernel, operation=other, **params)


def _conv_transpose_kernel(dy, x, kernel, *, operation, **params):
  del operation
  return _weight_gradient_p.bind(x, dy, kernel_size=kernel.aval.shape[:2], **params)


def _weight_gradient_transpose_x(dw, x, dy, *, kernel_size, **params):
  del x, kernel_size
  return _transposed_conv(dy, dw, operation="input_gradient", **params)


def _weight_gradient_transpose_dy(dw, x, dy, *, kernel_size, **params):
  del dy, kernel_size
  return _conv_p.bind(x, dw, operation="conv", **params)


def _batch(primitive, operands, dimensions, *, groups, **params):
  """Implements vmap: the mapped axis joins the groups, or the batch if only x is mapped."""
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
  needs_devices_in_lowering.add(primitive)
  batching.primitive_batchers[primitive] = partial(_batch, primitive)
  return primitive


def shape_of(x: Any, y: Any, params: dict[str, Any]) -> Shape:
  """Returns the shape of a bound primitive, of its operands, or their abstract values, and its parameters."""
  # In both operations the last axis of the second operand has the outputs of the groups.
  groups, kernel_size = params["groups"], params.get("kernel_size", y.shape[:2])
  operation = params.get("operation", "weight_gradient")
  _, height, width, channels = x.shape
  return Shape(
    operation, height, width, groups, channels // groups, y.shape[-1] // groups, tuple(kernel_size), x.dtype.name
  )


def _lower(primitive: Primitive) -> None:
  def rule(platform: str) -> Callable[..., jax.Array]:
    def lowered(x: jax.Array, y: jax.Array, **params: Any) -> jax.Array:
      shape, algorithm = shape_of(x, y, params), params.pop("algorithm")
      method = "conv" if params.pop("operation", None) else "weight_gradient"
      if _is_pointwise(shape.kernel_size, shape.groups, params["padding"]):
        chosen = _POINTWISE_CPU if platform == "cpu" else _POINTWISE
        return getattr(chosen, method)(x, y)
      if algorithm == "auto":
        # Programs with a symbolic batch are for export.
        algorithm = choose(platform, shape, portable=jax.export.is_symbolic_dim(x.shape[0]))
      if algorithm == "pallas" and platform != "tpu":
        algorithm = "native"
      function = partial(getattr(ALGORITHMS[algorithm], method), **params)
      if algorithm != "compiled":  # JAX itself reports that pallas needs a shard_map
        return function(x, y)
      return keep_batch_split(function, (x, y), (0, None) if method == "conv" else (0, 0))

    return lowered

  mlir.register_lowering(primitive, mlir.lower_fun(rule("other"), multiple_results=False))
  for platform in ("cpu", "tpu", "cuda"):
    mlir.register_lowering(primitive, mlir.lower_fun(rule(platform), multiple_results=False), platform=platform)


_conv_p = _define("r3gan_grouped_conv", _conv_abstract, _conv_transpose_x, _conv_transpose_kernel)
_weight_gradient_p = _define(
  "r3gan_grouped_conv_weight_gradient",
  _weight_gradient_abstract,
  _weight_gradient_transpose_x,
  _weight_gradient_transpose_dy,
)
PRIMITIVES = (_conv_p, _weight_gradient_p)
_lower(_conv_p)
_lower(_weight_gradient_p)
