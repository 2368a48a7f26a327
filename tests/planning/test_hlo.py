"""Collectives, sums in bfloat16, and kernels of GPUs are read from programs."""

import jax
import jax.numpy as jnp
import pytest

from r3gan_jax.planning.hlo import Collective, GpuProgram, bfloat16_sums, collectives

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


GPU = """
%scan (carry: f32[10,256], step: s32[], x: f32[256]) -> f32[10,256] {
  %carry = f32[10,256]{1,0} parameter(0)
  %step = s32[] parameter(1)
  %x = f32[256]{0} parameter(2)
  %row = f32[1,256]{1,0} bitcast(%x)
  ROOT %update = f32[10,256]{1,0} dynamic-update-slice(%carry, %row, %step, %step)
}

%move (p: f32[8,4]) -> bf16[4,8] {
  %p = f32[8,4]{1,0} parameter(0)
  %t = f32[4,8]{1,0} transpose(%p), dimensions={1,0}
  ROOT %c = bf16[4,8]{1,0} convert(%t)
}

%scaled (p.1: f32[8,4]) -> (f32[4,8], f32[8,4]) {
  %p.1 = f32[8,4]{1,0} parameter(0)
  %t.1 = f32[4,8]{1,0} transpose(%p.1), dimensions={1,0}
  %s = f32[8,4]{1,0} multiply(%p.1, %p.1)
  ROOT %both = (f32[4,8]{1,0}, f32[8,4]{1,0}) tuple(%t.1, %s)
}

%body (arg: (s32[], f32[10,256], f32[10,256])) -> (s32[], f32[10,256], f32[10,256]) {
  %arg = (s32[], f32[10,256]{1,0}, f32[10,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %to = f32[10,256]{1,0} get-tuple-element(%arg), index=1
  %from = f32[10,256]{1,0} get-tuple-element(%arg), index=2
  %one = f32[1,256]{1,0} dynamic-slice(%from, %i, %i), dynamic_slice_sizes={1,256}
  %flat = f32[256]{0} bitcast(%one)
  %stored = f32[10,256]{1,0} fusion(%to, %i, %flat), kind=kLoop, calls=%scan
  ROOT %next = (s32[], f32[10,256]{1,0}, f32[10,256]{1,0}) tuple(%i, %stored, %from)
}

%product (p.2: f32[8,4]) -> f32[8,8] {
  %p.2 = f32[8,4]{1,0} parameter(0)
  %t.2 = f32[4,8]{1,0} transpose(%p.2), dimensions={1,0}
  ROOT %dot = f32[8,8]{1,0} dot(%p.2, %t.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[10,256], image: bf16[2,4,4,32], kernel: bf16[32,3,3,16], m: f32[8,4]) -> f32[10,256] {
  %x = f32[10,256]{1,0} parameter(0)
  %image = bf16[2,4,4,32]{3,2,1,0} parameter(1)
  %kernel = bf16[32,3,3,16]{3,2,1,0} parameter(2)
  %m = f32[8,4]{1,0} parameter(3)
  %zero = s32[] constant(0)
  %init = (s32[], f32[10,256]{1,0}, /*index=2*/f32[10,256]{1,0}) tuple(%zero, %x, %x)
  %loop = (s32[], f32[10,256]{1,0}, f32[10,256]{1,0}) while(%init), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %moved = bf16[4,8]{1,0} fusion(%m), kind=kInput, calls=%move, metadata={op_name="jit(step)/Generator/stage_0"}
  %pair = (f32[4,8]{1,0}, f32[8,4]{1,0}) fusion(%m), kind=kLoop, calls=%scaled
  %squared = f32[8,8]{1,0} fusion(%m), kind=kCustom, calls=%product
  %conv = (bf16[2,4,4,32]{3,2,1,0}, u8[4096]{0}) custom-call(%image, %kernel), custom_call_target="__cudnn$convForward"
  %own = bf16[2,4,4,32]{3,2,1,0} convolution(%image, %kernel), metadata={op_name="jit(step)/conv"}
  %sum-start = f32[8,4]{1,0} all-reduce-start(%m), to_apply=%add
  %sum-done = f32[8,4]{1,0} all-reduce-done(%sum-start)
  ROOT %out = f32[10,256]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_kernels_of_a_gpu_program():
  program = GpuProgram(GPU)
  a_turn = (2 * 1024 + 2 * 4) + (2 * 1024 + 4)  # a row is read and written, by the slice and by the update in place
  convolution = 2 * 1024 * 2 + 2 * 4608
  assert program.transposed_bytes() == (128 + 64) + 3 * 128
  assert program.transposed_bytes("Generator|Discriminator") == 128 + 64
  assert program.bytes_accessed() == 10 * a_turn + (128 + 64) + 3 * 128 + (128 + 256) + 2 * convolution + 2 * 128
  assert program.cudnn_convolutions() == 1
  assert program.other_convolutions() == ("jit(step)/conv",)
