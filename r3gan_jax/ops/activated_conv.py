"""LeakyReLU(grouped_conv(LeakyReLU(x)) + bias) as one operation, whose derivatives keep one bit per activation.

With M_in and M_out the slopes (1 or `slope`) of the two activations, held constant, every derivative is one of

    conv(x, w, b)             = M_out (grouped_conv(M_in x, w) + b)
    weight_gradient(x, dy)    = the gradient of grouped_conv with respect to w, at M_in x, for M_out dy

which are closed under differentiation: the transpose of conv is conv with the flipped, exchanged kernel and with M_in
and M_out exchanged. On TPUs each is one Pallas kernel that reads and writes each activation once; elsewhere they are
composed of other operations.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from r3gan_jax.ops import grouped_conv_tpu
from r3gan_jax.ops.broadcast import broadcast_as
from r3gan_jax.ops.grouped_conv import flip_exchange, grouped_conv, match_varying_axes, weight_gradient
from r3gan_jax.ops.grouped_conv_tiling import WORD, supports
from r3gan_jax.ops.padding import same_padding, transposed_padding


def activated_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array, groups: int, slope: float) -> jax.Array:
  """Applies the operation: [N, H, W, G*I], [k, k, I, G*O] (k odd) of one dtype, [N, G*O] -> [N, H, W, G*O].

  The bias may be float32 beside bfloat16; its gradient is summed in its own dtype.
  """
  pads = same_padding(kernel.shape[:2])
  x, kernel = match_varying_axes(x, kernel)
  x, bias = match_varying_axes(x, bias)
  return _forward_p.bind(x, kernel, bias, groups=groups, padding=pads, slope=slope)[0]


# The forward pass: (x, kernel, bias) -> (result, signs of x, signs of the result).


def _forward_portable(x, kernel, bias, *, groups, padding, slope):
  out = grouped_conv(_leak(x, x > 0, slope), kernel, groups, padding) + bias[:, None, None].astype(x.dtype)
  return _leak(out, out > 0, slope), _pack(x), _pack(out)


def _forward_abstract(x, kernel, bias, *, groups, padding, slope):
  del bias, groups, padding, slope
  out = x.update(shape=(*x.shape[:3], kernel.shape[-1]), weak_type=False)

  def signs(a):
    batch, height, width, channels = a.shape
    return a.update(shape=(height, width // math.gcd(width, WORD), batch, channels), dtype=jnp.dtype(jnp.int32))

  return out, signs(x), signs(out)


def _forward_jvp(primals, tangents, **params):
  x, kernel, _ = primals
  dx, dkernel, dbias = tangents
  out, *signs = _forward_p.bind(*primals, **params)
  terms = []
  if not isinstance(dx, ad.Zero):
    terms.append(_bind_conv(dx, kernel, None if isinstance(dbias, ad.Zero) else dbias, signs, **params))
  elif not isinstance(dbias, ad.Zero):
    terms.append(_bind_conv(jnp.zeros_like(x), kernel, dbias, signs, **params))
  if not isinstance(dkernel, ad.Zero):
    terms.append(_bind_conv(x, dkernel, None, signs, **params))
  tangent = sum(terms[1:], terms[0]) if terms else _zero(out)
  return (out, *signs), (tangent, *(_zero(s) for s in signs))


# Its derivatives.


def _bind_conv(x, kernel, bias, signs, **params):
  return _conv_p.bind(x, kernel, *signs, *(() if bias is None else (bias,)), **params)


def _conv_portable(x, kernel, in_signs, out_signs, *bias, groups, padding, slope):
  out = grouped_conv(_leak(x, _unpack(in_signs, x), slope), kernel, groups, padding)
  for b in bias:
    out += b[:, None, None].astype(x.dtype)
  return _leak(out, _unpack(out_signs, out), slope)


def _conv_tpu(x, kernel, in_signs, out_signs, *bias, **params):
  (b,) = bias or (None,)
  return grouped_conv_tpu.conv(x, kernel, bias=b, in_signs=in_signs, out_signs=out_signs, **params)


def _conv_abstract(x, kernel, *_, **__):
  return x.update(shape=(*x.shape[:3], kernel.shape[-1]), weak_type=False)


def _conv_jvp(primals, tangents, **params):
  x, kernel, *signs = primals[:4]
  dx, dkernel, _, _, *dbias = tangents
  dbias = [b for b in dbias if not isinstance(b, ad.Zero)]
  out = _conv_p.bind(*primals, **params)
  terms = []
  if not isinstance(dx, ad.Zero):
    terms.append(_conv_p.bind(dx, kernel, *signs, *dbias, **params))
  elif dbias:
    terms.append(_conv_p.bind(jnp.zeros_like(x), kernel, *signs, *dbias, **params))
  if not isinstance(dkernel, ad.Zero):
    terms.append(_conv_p.bind(x, dkernel, *signs, **params))
  return out, sum(terms[1:], terms[0]) if terms else _zero(out)


def _conv_transpose(dy, x, kernel, in_signs, out_signs, *bias, groups, padding, slope):
  params = {"groups": groups, "slope": slope}
  dx = dkernel = None
  if ad.is_undefined_primal(x):
    size = kernel.shape[:2]
    back = flip_exchange(kernel, groups)
    dx = _conv_p.bind(dy, back, out_signs, in_signs, padding=transposed_padding(padding, size), **params)
  if ad.is_undefined_primal(kernel):
    dkernel = _weight_gradient_p.bind(
      x, dy, in_signs, out_signs, padding=padding, kernel_size=kernel.aval.shape[:2], **params
    )
  dbias = [
    _bias_gradient_p.bind(dy, out_signs, slope=slope, dtype=b.aval.dtype) if ad.is_undefined_primal(b) else None
    for b in bias
  ]
  return dx, dkernel, None, None, *dbias


def _weight_gradient_portable(x, dy, in_signs, out_signs, *, slope, groups, padding, kernel_size):
  x, dy = _leak(x, _unpack(in_signs, x), slope), _leak(dy, _unpack(out_signs, dy), slope)
  return weight_gradient(x, dy, groups, padding, kernel_size)


def _weight_gradient_tpu(x, dy, in_signs, out_signs, **params):
  return grouped_conv_tpu.weight_gradient(x, dy, in_signs=in_signs, out_signs=out_signs, **params)


def _weight_gradient_abstract(x, dy, *_, groups, kernel_size, **__):
  return x.update(shape=(*kernel_size, x.shape[-1] // groups, dy.shape[-1]), weak_type=False)


def _weight_gradient_jvp(primals, tangents, **params):
  x, dy, *signs = primals
  dx, ddy, *_ = tangents
  out = _weight_gradient_p.bind(*primals, **params)
  terms = []
  if not isinstance(dx, ad.Zero):
    terms.append(_weight_gradient_p.bind(dx, dy, *signs, **params))
  if not isinstance(ddy, ad.Zero):
    terms.append(_weight_gradient_p.bind(x, ddy, *signs, **params))
  return out, sum(terms[1:], terms[0]) if terms else _zero(out)


def _weight_gradient_transpose(dw, x, dy, in_signs, out_signs, *, kernel_size, padding, groups, slope):
  params = {"groups": groups, "slope": slope}
  dx = ddy = None
  if ad.is_undefined_primal(x):
    back = transposed_padding(padding, kernel_size)
    dx = _conv_p.bind(dy, flip_exchange(dw, groups), out_signs, in_signs, padding=back, **params)
  if ad.is_undefined_primal(dy):
    ddy = _conv_p.bind(x, dw, in_signs, out_signs, padding=padding, **params)
  return dx, ddy, None, None


def _zero(x: jax.Array) -> ad.Zero:
  return ad.Zero(jax.typeof(x).to_tangent_aval())


def _bias_gradient_portable(dy, out_signs, *, slope, dtype):
  return jnp.sum(_leak(dy, _unpack(out_signs, dy), slope), (1, 2), dtype=dtype)


def _bias_gradient_abstract(dy, out_signs, *, slope, dtype):
  del out_signs, slope
  return dy.update(shape=(dy.shape[0], dy.shape[-1]), dtype=dtype, weak_type=False)


def _bias_gradient_jvp(primals, tangents, **params):
  _, out_signs = primals
  out = _bias_gradient_p.bind(*primals, **params)
  if isinstance(tangents[0], ad.Zero):
    return out, _zero(out)
  return out, _bias_gradient_p.bind(tangents[0], out_signs, **params)


def _bias_gradient_transpose(db, dy, out_signs, *, slope, dtype):
  del dtype
  db = broadcast_as(db[:, None, None], dy.aval)
  return _leak(db, _unpack(out_signs, db), slope), None


def _leak(x: jax.Array, positive: jax.Array, slope: float) -> jax.Array:
  return jnp.where(positive, x, slope * x)


def _pack(x: jax.Array) -> jax.Array:
  """Packs the signs of [N, H, W, C] as `grouped_conv_tpu.activated_conv` does."""
  batch, height, width, channels = x.shape
  columns = math.gcd(width, WORD)
  split = (x > 0).transpose(1, 2, 0, 3).reshape(height, width // columns, columns, batch, channels)
  weights = jnp.asarray(np.array([1 << c for c in range(columns)], np.uint32).astype(np.int32))
  return jnp.sum(split.astype(jnp.int32) * weights.reshape(1, 1, -1, 1, 1), axis=2)


def _unpack(signs: jax.Array, like: jax.Array) -> jax.Array:
  """Unpacks signs to bool [N, H, W, C]."""
  batch, height, width, channels = like.shape
  columns = math.gcd(width, WORD)
  shift = jnp.arange(columns, dtype=jnp.int32).reshape(1, 1, -1, 1, 1)
  bits = jax.lax.shift_right_logical(*jnp.broadcast_arrays(signs[:, :, None], shift)) & 1
  return (bits != 0).reshape(height, width, batch, channels).transpose(2, 0, 1, 3)


def _where_supported(portable: Callable, tpu: Callable) -> Callable:
  """Returns the TPU lowering: the kernel if it supports the sizes. The second operand's last axis has the outputs."""

  def lowered(x, y, *operands, groups, **params):
    supported = supports(groups, x.shape[-1] // groups, y.shape[-1] // groups)
    return (tpu if supported else portable)(x, y, *operands, groups=groups, **params)

  return lowered


def _define(
  name: str, abstract: Callable, jvp: Callable, portable: Callable, tpu: Callable, multiple_results: bool = False
) -> Primitive:
  primitive = Primitive(name)
  primitive.multiple_results = multiple_results
  primitive.def_abstract_eval(abstract)
  primitive.def_impl(lambda *operands, **params: jax.jit(partial(primitive.bind, **params))(*operands))
  ad.primitive_jvps[primitive] = jvp

  mlir.register_lowering(primitive, mlir.lower_fun(portable, multiple_results))
  mlir.register_lowering(primitive, mlir.lower_fun(tpu, multiple_results), platform="tpu")
  return primitive


_forward_p = _define(
  "r3gan_activated_conv",
  _forward_abstract,
  _forward_jvp,
  _forward_portable,
  _where_supported(_forward_portable, grouped_conv_tpu.activated_conv),
  multiple_results=True,
)
_conv_p = _define(
  "r3gan_activated_conv_linear", _conv_abstract, _conv_jvp, _conv_portable, _where_supported(_conv_portable, _conv_tpu)
)
_weight_gradient_p = _define(
  "r3gan_activated_conv_weight_gradient",
  _weight_gradient_abstract,
  _weight_gradient_jvp,
  _weight_gradient_portable,
  _where_supported(_weight_gradient_portable, _weight_gradient_tpu),
)
_bias_gradient_p = _define(
  "r3gan_activated_conv_bias_gradient",
  _bias_gradient_abstract,
  _bias_gradient_jvp,
  _bias_gradient_portable,
  grouped_conv_tpu.bias_gradient,
)
ad.primitive_transposes[_bias_gradient_p] = _bias_gradient_transpose
ad.primitive_transposes[_conv_p] = _conv_transpose
ad.primitive_transposes[_weight_gradient_p] = _weight_gradient_transpose
