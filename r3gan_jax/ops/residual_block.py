"""R3GAN's residual block as one operation, which on TPUs reads and writes each activation once.

With M_u and M_v the slopes (1 or `slope`) of LeakyReLU, by which the block is piecewise linear, and * a grouped
convolution that keeps the size, the block is

    u = M_u (x conv1 + b1)        v = M_v (u * conv2 + b2)        out = x + v conv3

With the slopes held constant it is linear in (x, b1, b2), and its transpose in x is such a block again: the kernels are
transposed and change places, as do the slopes, and there are no biases. Let out', v', u' be that block's input and
inner activations, for a cotangent out'. They are all that the gradients of the parameters need besides x, u and v:

    conv1: x^T u'      b1: sum u'      conv2: the weight gradient of * at u for v'      b2: sum v'      conv3: v^T out'

So one kernel serves the forward pass, the input gradient and tangents. It writes u and v for gradients, the slopes as
signs, one bit for each, and the sums over pixels; JAX's dead-code elimination tells which of them nobody reads.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from jax.interpreters import partial_eval as pe

from r3gan_jax.ops import residual_block_tpu
from r3gan_jax.ops.broadcast import broadcast_as
from r3gan_jax.ops.grouped_conv import flip_exchange, grouped_conv, pointwise_conv, weight_gradient
from r3gan_jax.ops.padding import same_padding
from r3gan_jax.ops.partitioning import match_varying_axes
from r3gan_jax.ops.residual_block_tpu import WORD


class Weights(NamedTuple):
  """The parameters of a block.

  Attributes:
    conv1: [C, K], of x's dtype.
    bias1: [N, K]. It may be float32 beside bfloat16.
    conv2: [k, k, K / groups, K] (k odd), of x's dtype.
    bias2: [N, K].
    conv3: [K, C], of x's dtype.
  """

  conv1: jax.Array
  bias1: jax.Array
  conv2: jax.Array
  bias2: jax.Array
  conv3: jax.Array


def residual_block(x: jax.Array, weights: Weights, groups: int, slope: float) -> jax.Array:
  """Applies the block: [N, H, W, C] -> [N, H, W, C]. The gradients of biases are summed in float32."""
  x, *matched = match_varying_axes(x, *weights)
  return _block(x, Weights(*matched), groups, slope)


class Results(NamedTuple):
  """The arrays that the operation can compute.

  Attributes:
    out: [N, H, W, C].
    u, v: the inner activations, [N, H, W, K].
    u_signs, v_signs: [H, W / c, N, K] int32, c = gcd(W, 32): bit i of a word is 1 where column i of c is positive.
    u_sums, v_sums: sums over pixels, [N, K] float32.
  """

  out: Any
  u: Any
  v: Any
  u_signs: Any
  v_signs: Any
  u_sums: Any
  v_sums: Any


_ALL = (True,) * len(Results._fields)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _block(x: jax.Array, weights: Weights, groups: int, slope: float) -> jax.Array:
  return _bind(x, weights, groups, slope).out


def _block_forward(x, weights, groups, slope):
  results = _bind(x, weights, groups, slope)
  return results.out, (x, weights, results)


def _block_backward(groups, slope, saved, cotangent):
  x, weights, (_, u, v, u_signs, v_signs, *_) = saved
  conv1, bias1, conv2, bias2, conv3 = weights
  transposed = Weights(conv3.T, jnp.zeros_like(bias2), flip_exchange(conv2, groups), jnp.zeros_like(bias1), conv1.T)
  # The transposed block passes v' first.
  back = _bind(cotangent, transposed, groups, slope, v_signs, u_signs)
  size = conv2.shape[:2]
  gradients = Weights(
    conv1=_pointwise_gradient(x, back.v),
    bias1=back.v_sums.astype(bias1.dtype),
    conv2=weight_gradient(u, back.u, groups, same_padding(size), size),
    bias2=back.u_sums.astype(bias2.dtype),
    conv3=_pointwise_gradient(v, cotangent),
  )
  return back.out, gradients


_block.defvjp(_block_forward, _block_backward)


def _pointwise_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
  return weight_gradient(x, dy, 1, same_padding((1, 1)), (1, 1))[0, 0]


def _bind(x: jax.Array, weights: Weights, groups: int, slope: float, *signs: jax.Array) -> Results:
  """Computes a block, whose slopes are those of u and v or, if they are given, of the signs of u and v."""
  return Results(*_block_p.bind(x, *weights, *signs, groups=groups, slope=slope, wanted=_ALL))


def portable(x, conv1, bias1, conv2, bias2, conv3, *signs, groups, slope, wanted):
  def activate(y, bias, signs):
    y += broadcast_as(bias[:, None, None], y)
    return jnp.where(_unpack(signs, y) if signs is not None else y > 0, y, slope * y)

  u_signs, v_signs = signs or (None, None)
  u = activate(pointwise_conv(x, conv1), bias1, u_signs)
  v = activate(grouped_conv(u, conv2, groups), bias2, v_signs)
  sums = (jnp.sum(y, (1, 2), dtype=jnp.float32) for y in (u, v))
  return _asked((x + pointwise_conv(v, conv3), u, v, _pack(u), _pack(v), *sums), wanted)


def _pack(x: jax.Array) -> jax.Array:
  """Packs the signs of [N, H, W, K]; see `Results`."""
  batch, height, width, channels = x.shape
  columns = math.gcd(width, WORD)
  split = (x > 0).transpose(1, 2, 0, 3).reshape(height, width // columns, columns, batch, channels)
  weights = jnp.asarray(np.array([1 << c for c in range(columns)], np.uint32).astype(np.int32))
  return jnp.sum(split.astype(jnp.int32) * weights.reshape(1, 1, -1, 1, 1), axis=2)


def _unpack(signs: jax.Array, like: jax.Array) -> jax.Array:
  """Unpacks signs to bool [N, H, W, K]."""
  batch, height, width, channels = like.shape
  columns = math.gcd(width, WORD)
  shift = jnp.arange(columns, dtype=jnp.int32).reshape(1, 1, -1, 1, 1)
  bits = jax.lax.shift_right_logical(*jnp.broadcast_arrays(signs[:, :, None], shift)) & 1
  return (bits != 0).reshape(height, width, batch, channels).transpose(2, 0, 1, 3)


def _tpu(x, conv1, bias1, conv2, *operands, groups, **params):
  *size, _, inner = conv2.shape
  # Programs with a symbolic batch are for export.
  supported = not jax.export.is_symbolic_dim(x.shape[0]) and residual_block_tpu.supports(x, inner, groups, size)
  chosen = residual_block_tpu.residual_block if supported else portable
  return chosen(x, conv1, bias1, conv2, *operands, groups=groups, **params)


def _abstract(x, conv1, *_, wanted, **__):
  batch, height, width, _ = x.shape
  inner = conv1.shape[-1]
  activation = x.update(shape=(batch, height, width, inner), weak_type=False)
  words = x.update(shape=(height, width // math.gcd(width, WORD), batch, inner), dtype=jnp.dtype(jnp.int32))
  sums = x.update(shape=(batch, inner), dtype=jnp.dtype(jnp.float32))
  return _asked((x.update(weak_type=False), activation, activation, words, words, sums, sums), wanted)


def _jvp(primals, tangents, *, wanted, **params):
  """Holds the slopes constant; tangents of kernels are those of the portable composition."""
  x, *weights = primals[:6]
  results = _bind(x, Weights(*weights), *params.values(), *primals[6:])
  signs = primals[6:] or (results.u_signs, results.v_signs)
  linear = tuple(ad.instantiate_zeros(tangent) for tangent in tangents[:6])
  if all(isinstance(tangents[index], ad.Zero) for index in (1, 3, 5)):
    moved = Weights(*weights)._replace(bias1=linear[2], bias2=linear[4])
    pushed = _bind(linear[0], moved, *params.values(), *signs)
  else:
    fixed = partial(portable, wanted=_ALL, **params)
    _, pushed = jax.jvp(lambda *operands: Results(*fixed(*operands, *signs)), tuple(primals[:6]), linear)
  pushed = pushed._replace(**{name: _zero(getattr(results, name)) for name in ("u_signs", "v_signs")})
  return [_asked(found, wanted) for found in (results, pushed)]


def _zero(x: jax.Array) -> ad.Zero:
  return ad.Zero(jax.typeof(x).to_tangent_aval())


def _asked(results: Iterable[Any], wanted: Sequence[bool]) -> list[Any]:
  return [result for result, asked in zip(results, wanted, strict=True) if asked]


def _dead_code(used: Sequence[bool], equation: Any) -> tuple[list[bool], Any]:
  """Drops the results that nobody reads."""
  if not any(used):
    return [False] * len(equation.invars), None
  before = iter(used)
  wanted = tuple(asked and next(before) for asked in equation.params["wanted"])
  outvars = [variable for variable, read in zip(equation.outvars, used, strict=True) if read]
  params = equation.params | {"wanted": wanted}
  return [True] * len(equation.invars), equation.replace(outvars=outvars, params=params)


def _define(portable: Callable, tpu: Callable) -> Primitive:
  primitive = Primitive("r3gan_residual_block")
  primitive.multiple_results = True
  primitive.def_abstract_eval(_abstract)
  primitive.def_impl(lambda *operands, **params: jax.jit(partial(primitive.bind, **params))(*operands))
  ad.primitive_jvps[primitive] = _jvp
  pe.dce_rules[primitive] = _dead_code
  mlir.register_lowering(primitive, mlir.lower_fun(portable, multiple_results=True))
  mlir.register_lowering(primitive, mlir.lower_fun(tpu, multiple_results=True), platform="tpu")
  return primitive


_block_p = _define(portable, _tpu)
