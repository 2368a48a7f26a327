"""Collectives and sums in bfloat16 are read from programs."""

import jax
import jax.numpy as jnp
import pytest

from r3gan_jax.planning.hlo import Collective, bfloat16_sums, collectives

PROGRAM = """
  %all-reduce.1 = f32[768,1536]{1,0:T(8,128)} all-reduce(%fusion.3), channel_id=1, replica_groups={{0,1}}
  %all-reduce-start = (f32[16]{0}, bf16[4,8]{1,0}, /*index=2*/pred[3]{0}) all-reduce-start(%a, %b, %c), channel_id=2
  %all-reduce-done = (f32[16]{0}, bf16[4,8]{1,0}, /*index=2*/pred[3]{0}) all-reduce-done(%all-reduce-start)
  %all-gather.7 = u8[2,5]{1,0} all-gather(u8[1,5]{1,0} %x), dimensions={0}
  %permute = f32[] collective-permute(f32[] %y), source_target_pairs={{0,1}}
  %fusion.4 = f32[4]{0} fusion(%all-reduce.1), calls=%all-gather_computation
"""


def test_collectives_of_a_program():
  assert collectives(PROGRAM) == (
    Collective("all-reduce", 4 * 768 * 1536),
    Collective("all-reduce", 4 * 16 + 2 * 32 + 3),
    Collective("all-gather", 10),
    Collective("collective-permute", 4),
  )


SUMS = """
%fused (param_0: bf16[16,32,8]) -> (bf16[8], bf16[32]) {
  %param_0 = bf16[16,32,8]{2,1,0} parameter(0)
  %zero = bf16[] constant(0)
  %pixels.1 = bf16[8]{0:T(1024)(128)(2,1)} reduce(%param_0, %zero), dimensions={0,1}, to_apply=%add
  %few = bf16[32,8]{1,0} reduce(%param_0, %zero), dimensions={0}, to_apply=%add
  %wide = f32[8]{0} reduce(%convert.1, %zero.1), dimensions={0,1}, to_apply=%add
  ROOT %last = (bf16[8]{0}, bf16[32]{0}) tuple(%pixels.1, %few)
}
"""


def test_bfloat16_sums_of_a_program():
  (found,) = bfloat16_sums(SUMS)
  assert found.startswith("%pixels.1 = ")
  assert len(bfloat16_sums(SUMS, terms=16)) == 2


@pytest.mark.parametrize("bias_dtype, count", [(jnp.bfloat16, 1), (jnp.float32, 0)])
def test_bfloat16_sums_of_a_lowered_program(bias_dtype, count):
  def loss(bias):
    return jnp.sum((jnp.broadcast_to(bias, (4, 8, 8)).astype(jnp.bfloat16) ** 2).astype(jnp.float32))

  lowered = jax.jit(jax.grad(loss)).lower(jnp.zeros((1, 1, 8), bias_dtype))
  assert len(bfloat16_sums(lowered.as_text("hlo"))) == count
