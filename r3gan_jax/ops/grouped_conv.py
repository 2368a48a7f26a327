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
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from r3gan_jax.ops import grouped_conv_cpu, grouped_conv_tiling, grouped_conv_tpu
from r3gan_jax.ops import grouped_conv_xla as xla
from r3gan_jax.ops.padding import Padding, output_shape, same_padding, transposed_padding
from r3gan_jax.ops.partitioning import keep_batch_split, match_varying_axes, needs_devices_in_lowering


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


def flip_exchange(kernel: jax.Array, groups: int) -> jax.Array:
  """Returns the kernel of the transposed convolution: [kh, kw, I, G*O] -> [kh, kw, O, G*I], flipped in space."""
  height, width, inputs, outputs = kernel.shape
  kernel = kernel[::-1, ::-1].reshape(height, width, inputs, groups, outputs // groups)
  return kernel.transpose(0, 1, 4, 3, 2).reshape(height, width, outputs // groups, groups * inputs)


# Algorithms: each computes both operations; they agree up to rounding.


class Algorithm(NamedTuple):
  """One way to compute both operations; it takes groups in multiples of `merge`."""

  conv: Callable[..., jax.Array]
  weight_gradient: Callable[..., jax.Array]
  merge: int = 1


def _merged(merge: int) -> Algorithm:
  return Algorithm(partial(xla.conv_merged, merge=merge), partial(xla.weight_gradient_merged, merge=merge), merge)


ALGORITHMS: dict[str, Algorithm] = {
  "native": Algorithm(xla.conv_native, xla.weight_gradient_native),
  "per_group": Algorithm(xla.conv_per_group, xla.weight_gradient_per_group),
  "compiled": Algorithm(grouped_conv_cpu.conv, grouped_conv_cpu.weight_gradient),
  "pallas": Algorithm(grouped_conv_tpu.conv, grouped_conv_tpu.weight_gradient),
  "merged_2": _merged(2),
  "merged_4": _merged(4),
  "merged_8": _merged(8),
}


# A 1x1 convolution of one group is a matrix product with every algorithm.
_POINTWISE = Algorithm(xla.conv_pointwise, xla.weight_gradient_pointwise)
_POINTWISE_CPU = Algorithm(xla.conv_pointwise, xla.weight_gradient_pointwise_cpu)


def _is_pointwise(kernel_size: tuple[int, ...], groups: int, padding: Padding) -> bool:
  return (*kernel_size, groups) == (1, 1, 1) and padding == ((0, 0), (0, 0))


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
    xla.join_groups(jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0))
    for a, d in zip((x, y), (x_dim, y_dim), strict=True)
  )
  return xla.split_groups(primitive.bind(x, y, groups=size * groups, **params), size), 0


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
