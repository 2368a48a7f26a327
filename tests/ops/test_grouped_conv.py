"""The grouped convolution against XLA's own, in every derivative."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from jax import lax
from jax.sharding import PartitionSpec as P

from r3gan_jax.ops import grouped_conv_cpu
from r3gan_jax.ops.grouped_conv import ALGORITHMS, Shape, choose, grouped_conv

# (groups, inputs per group, outputs per group, kernel, padding)
CASES = [
  (4, 3, 3, (3, 3), None),
  (1, 4, 6, (3, 3), None),
  (6, 1, 1, (3, 3), None),  # depthwise
  (2, 3, 5, (1, 1), None),
  (2, 2, 3, (4, 2), None),
  (3, 2, 2, (5, 3), ((0, 4), (2, 1))),
]
cases = pytest.mark.parametrize("groups, inputs, outputs, kernel_size, padding", CASES)


def operands(groups, inputs, outputs, kernel_size, dtype=jnp.float32):
  x_key, kernel_key = jax.random.split(jax.random.key(0))
  x = jax.random.normal(x_key, (2, 7, 6, groups * inputs), dtype)
  return x, jax.random.normal(kernel_key, (*kernel_size, inputs, groups * outputs), dtype)


def native(x, kernel, groups, padding):
  if padding is None:
    padding = [((k - 1) // 2, k // 2) for k in kernel.shape[:2]]
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )


def assert_same(actual, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max()), actual, expected)


@pytest.mark.card
@pytest.mark.parametrize("algorithm", ["auto", "native", "pallas", "per_group"])
@cases
def test_value_and_derivatives(groups, inputs, outputs, kernel_size, padding, algorithm):
  check_value_and_derivatives(groups, inputs, outputs, kernel_size, padding, algorithm)


@pytest.mark.card
@pytest.mark.parametrize("groups, algorithm", [(6, "merged_2"), (4, "merged_4"), (16, "merged_8")])
def test_merged_groups(groups, algorithm):
  check_value_and_derivatives(groups, 2, 3, (4, 3), None, algorithm)


def test_merged_groups_stay_apart():
  """What is not finite in one group's kernel or cotangent does not reach its neighbours."""
  x, kernel = operands(2, 3, 3, (3, 3))
  dy = jnp.ones((*x.shape[:3], 6))
  merged, padding = ALGORITHMS["merged_2"], ((1, 1), (1, 1))
  bad = kernel.at[..., 4].set(jnp.inf)
  assert np.isfinite(merged.conv(x, bad, groups=2, padding=padding)[..., :3]).all()
  found = merged.weight_gradient(x, dy.at[..., 4].set(jnp.nan), groups=2, padding=padding, kernel_size=(3, 3))
  assert np.isfinite(found).all(axis=(0, 1, 2)).tolist() == [True] * 4 + [False, True]


def test_the_pointwise_convolution():
  check_value_and_derivatives(1, 6, 10, (1, 1), None, "auto")


@pytest.mark.parametrize(
  "groups, inputs, outputs, kernel_size, padding",
  [
    (2, 16, 16, (3, 3), None),
    (3, 16, 32, (1, 1), None),
    (2, 32, 16, (4, 2), None),
    (2, 16, 16, (5, 3), ((0, 4), (2, 1))),
    (1, 48, 80, (3, 3), None),  # more than one task, for both
  ],
)
@pytest.mark.skipif(not grouped_conv_cpu.available(), reason="no C++ compiler")
def test_the_compiled_kernel(groups, inputs, outputs, kernel_size, padding):
  assert choose("cpu", Shape("conv", 7, 6, groups, inputs, outputs, kernel_size, "float32")) == "compiled"
  check_value_and_derivatives(groups, inputs, outputs, kernel_size, padding, "compiled")


def test_what_is_exported_for_any_batch_has_no_kernel_of_ours():
  """For shapes that custom kernels support on CPUs and TPUs."""
  (batch,) = jax.export.symbolic_shape("n")
  x, kernel = operands(2, 16, 16, (3, 3))
  abstract = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
  convolve = jax.jit(lambda x, kernel: grouped_conv(x, kernel, groups=2))
  exported = jax.export.export(convolve, platforms=("cpu", "cuda", "tpu"))(abstract, kernel)
  assert set(re.findall(r"custom_call @(\w+)", exported.mlir_module())) <= {"shape_assertion"}
  assert_same(exported.call(x, kernel), native(x, kernel, 2, None))


@pytest.mark.skipif(not grouped_conv_cpu.available(), reason="no C++ compiler")
@pytest.mark.parametrize("side, batch", [(4, 6), (5, 2), (21, 1), (32, 2)])
def test_the_compiled_kernel_on_all_widths(side, batch):
  """Rows are computed in pieces of 16, 8, 4 and 1 pixels; small images several, and large ones some rows at a time."""
  x = jax.random.normal(jax.random.key(0), (batch, side, side, 64))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 16, 64))
  compiled = partial(grouped_conv, groups=4, algorithm="compiled")
  outputs = [jax.vjp(partial(conv, x), kernel) for conv in (compiled, partial(native, groups=4, padding=None))]
  assert_same(*((y, pull_back(y)) for y, pull_back in outputs))


def check_value_and_derivatives(groups, inputs, outputs, kernel_size, padding, algorithm):
  x, kernel = operands(groups, inputs, outputs, kernel_size)

  def results(conv):
    def loss(x, kernel):
      return jnp.sum(jnp.tanh(conv(x, kernel, groups, padding)))

    def penalty(x, kernel):
      return jnp.sum(jax.grad(loss)(x, kernel) ** 2)

    def weight_penalty(x, kernel):
      return jnp.sum(jax.grad(loss, 1)(x, kernel) ** 2)

    return (
      conv(x, kernel, groups, padding),
      jax.grad(loss, (0, 1))(x, kernel),
      jax.grad(penalty, (0, 1))(x, kernel),
      jax.grad(weight_penalty, (0, 1))(x, kernel),
      jax.jvp(lambda x, k: jax.grad(loss, (0, 1))(x, k), (x, kernel), (jnp.sin(x), jnp.cos(kernel)))[1],
    )

  assert_same(
    jax.jit(lambda: results(partial(grouped_conv, algorithm=algorithm)))(), jax.jit(lambda: results(native))()
  )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("side, inputs, outputs", [(8, 3, 5), (17, 3, 5), (17, 5, 1)])
def test_every_way_to_a_weight_gradient(side, inputs, outputs, groups):
  """By patches of the batch, of each image, and of dy."""
  x = jax.random.normal(jax.random.key(0), (2, side, side + 1, groups * inputs))
  padding, kernel_size = ((0, 2), (1, 1)), (3, 4)
  dy = jax.random.normal(jax.random.key(1), (2, side, side, groups * outputs))
  found = jax.jit(
    partial(ALGORITHMS["per_group"].weight_gradient, groups=groups, padding=padding, kernel_size=kernel_size)
  )
  zeros = jnp.zeros((*kernel_size, inputs, groups * outputs))
  expected = jax.vjp(lambda kernel: native(x, kernel, groups, padding), zeros)[1](dy)[0]
  assert_same(found(x, dy), expected)


@pytest.mark.card
@pytest.mark.parametrize("x_axis, kernel_axis", [(0, None), (None, 1), (2, 0)])
def test_vmap(x_axis, kernel_axis):
  groups = 2
  xs, kernels = (jnp.stack([a, 2 * a, a**2]) for a in operands(groups, 2, 3, (3, 3)))
  x = xs[0] if x_axis is None else jnp.moveaxis(xs, 0, x_axis)
  kernel = kernels[0] if kernel_axis is None else jnp.moveaxis(kernels, 0, kernel_axis)

  def gradients(conv):
    def one(x, kernel):
      return jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k, groups, None))), (0, 1))(x, kernel)

    return jax.vmap(one, (x_axis, kernel_axis))(x, kernel)

  assert_same(gradients(grouped_conv), gradients(native))


def test_bfloat16():
  x, kernel = operands(4, 8, 8, (3, 3), jnp.bfloat16)
  out = grouped_conv(x, kernel, 4)
  assert out.dtype == jnp.bfloat16
  expected = native(x.astype(jnp.float32), kernel.astype(jnp.float32), 4, None)
  np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [2, 16])
def test_sharded_batch_beside_a_replicated_kernel(channels):
  x, kernel = operands(2, channels, channels, (3, 3))
  conv = jax.shard_map(
    lambda x, kernel: grouped_conv(x, kernel, 2),
    mesh=mesh_of(2),
    in_specs=(P("data"), P()),
    out_specs=P("data"),
  )
  assert_same(conv(x, kernel), native(x, kernel, 2, None))


@pytest.mark.parametrize("algorithm", ["native", "per_group", "compiled"])
def test_gradients_of_each_device_are_its_own(algorithm):
  """For a kernel of which each device has its own copy; also in second derivatives."""
  x, kernel = operands(2, 16, 16, (3, 3))

  def gradients(conv, x, kernel):
    def total(x, kernel):
      return jnp.sum(jnp.sin(conv(x, kernel)))

    penalty = jax.grad(lambda kernel: jnp.sum(jnp.square(jax.grad(total)(x, kernel))))
    return jnp.stack([jax.grad(total, 1)(x, kernel), penalty(kernel)])[None]

  def on_a_device(x, kernel):
    return gradients(partial(grouped_conv, groups=2, algorithm=algorithm), x, lax.pcast(kernel, "data", to="varying"))

  ours = jax.shard_map(on_a_device, mesh=mesh_of(2), in_specs=(P("data"), P()), out_specs=P("data"))
  theirs = [gradients(partial(native, groups=2, padding=None), part, kernel) for part in jnp.split(x, 2)]
  assert_same(jax.jit(ours)(x, kernel), jax.jit(jnp.concatenate)(theirs))


def test_misfits_are_named():
  x, kernel = operands(2, 3, 3, (3, 3))
  with pytest.raises(ValueError, match="do not fit 3 groups"):
    grouped_conv(x, kernel, 3)
  with pytest.raises(ValueError, match="x is float32 but the kernel is bfloat16"):
    grouped_conv(x, kernel.astype(jnp.bfloat16), 2)
  with pytest.raises(ValueError, match="multiple of 16 output channels"):
    grouped_conv(x, kernel, 2, algorithm="compiled")
  with pytest.raises(ValueError, match="merged_4 does not fit 2 groups"):
    grouped_conv(x, kernel, 2, algorithm="merged_4")
  with pytest.raises(ValueError, match="unknown algorithm 'fft'"):
    grouped_conv(x, kernel, 2, algorithm="fft")
