"""What is read off a compiled program."""

from r3gan_jax.training.plan import Collective, collectives

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
