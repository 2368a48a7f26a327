"""R3GAN's smoke step, as it trains, compiled by the real compilers, which need no TPU or GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import cifar10
from r3gan_jax import factory

ROOT = Path(__file__).parent.parent.parent
# `make test` installs them here: in the virtual environment itself they would print errors at every start on a CPU.
LIBTPU = ROOT / ".venv" / "libtpu"
GPU_COMPILER = ROOT / ".venv" / "gpu_compiler"
COMPILE = """
import json
import sys
from configs import cifar10
from r3gan_jax import factory
from r3gan_jax.planning.hlo import GpuProgram, bfloat16_sums
from r3gan_jax.planning.plan import compile_for_topology

platform, topology = sys.argv[1:]
scan, merged = None, {}
if platform == "gpu":
  import jax
  from r3gan_jax.ops.grouped_conv import grouped_conv
  from r3gan_jax.planning.topology import open_mesh, parse_topology
  from r3gan_jax.training.mesh import replicated

  sharding = replicated(open_mesh(parse_topology(topology)))
  shapes = (1024, 1024), (10, 1024, 1024)
  carry, rows = (jax.ShapeDtypeStruct(shape, "float32", sharding=sharding) for shape in shapes)
  summed = jax.jit(lambda carry, rows: jax.lax.scan(lambda carry, row: (2 * carry + row, None), carry, rows)[0])
  compiled = summed.lower(carry, rows).compile({"xla_gpu_autotune_level": 0})
  scan = GpuProgram(compiled.as_text()).bytes_accessed()
  # A stage of the CIFAR-10 preset at 8x8 pixels: convolution, input gradient and weight gradient.
  operands = [jax.ShapeDtypeStruct(s, "bfloat16", sharding=sharding) for s in ((64, 8, 8, 1536), (3, 3, 16, 1536))]
  for algorithm in ("merged_2", "merged_4", "merged_8"):
    conv = lambda x, kernel: grouped_conv(x, kernel, 96, algorithm=algorithm)
    both = jax.jit(lambda x, kernel, dy: (conv(x, kernel), jax.vjp(conv, x, kernel)[1](dy)))
    text = both.lower(*operands, operands[0]).compile({"xla_gpu_autotune_level": 0}).as_text()
    merged[algorithm] = GpuProgram(text).cudnn_convolutions(), GpuProgram(text).other_convolutions()
plan = compile_for_topology(factory.build_experiment(cifar10.get_config("smoke"), 1, platform), topology)
program = GpuProgram(plan.text)
print(json.dumps({
  "scan": scan,
  "merged": merged,
  "collectives": [[collective.kind, collective.size] for collective in plan.collectives],
  "used": plan.used,
  "flops": plan.flops,
  "bytes": plan.bytes_accessed,
  "bfloat16": "bf16[" in plan.text,
  "bfloat16_sums": bfloat16_sums(plan.text),
  "residual_blocks": sum("custom-call(" in line and "/residual_block/" in line for line in plan.text.splitlines()),
  "cudnn_convolutions": program.cudnn_convolutions() if platform == "gpu" else 0,
  "other_convolutions": program.other_convolutions() if platform == "gpu" else [],
  "transposed_bytes": program.transposed_bytes("Generator|Discriminator") if platform == "gpu" else 0,
}))
"""


def compiled(compiler, *arguments):
  """Returns what `COMPILE` prints with the packages in the folder `compiler`."""
  environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{compiler}", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", COMPILE, *arguments]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.skipif(not LIBTPU.exists(), reason="needs libtpu: make test")
def test_the_step_compiles_for_a_tpu():
  """With augmentation, on v5e:2x2: kernels, no sums in bfloat16, one all-reduce per phase."""
  plan = compiled(LIBTPU, "tpu", "v5e:2x2")
  algorithm = factory.build_algorithm(cifar10.get_config("smoke"))
  params, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
  gradients = [sum(4 * leaf.size for leaf in jax.tree.leaves(network)) for network in params.values()]
  assert [kind for kind, _ in plan["collectives"]] == ["all-reduce"] * 2
  sizes = sorted(size for _, size in plan["collectives"])
  for size, expected in zip(sizes, sorted(gradients), strict=True):
    assert expected <= size < expected + 64  # and a few metrics
  assert 0 < plan["used"] < 2**30
  assert plan["bfloat16"] and not plan["bfloat16_sums"]
  # Each network has 4 blocks. Phase D: G forward; D forward, back, and forward along the penalty's direction. Phase G:
  # G and D forward and back, and D forward on reals.
  assert plan["residual_blocks"] == (4 + 5) * 4


@pytest.mark.skipif(not GPU_COMPILER.exists(), reason="needs XLA's GPU compiler: make test")
def test_the_step_compiles_for_a_gpu():
  """With augmentation, on one H100: every convolution is a call of cuDNN, and no activation changes its layout."""
  plan = compiled(GPU_COMPILER, "gpu", "h100:1x1")
  # Each of 10 turns reads two arrays of 4 MiB and writes one; before them the carry is copied. And there is a counter.
  assert plan["scan"] == pytest.approx((10 * 3 + 2) * 4 * 2**20, rel=1e-4)
  assert plan["merged"] == {name: [3, []] for name in ("merged_2", "merged_4", "merged_8")}
  assert not plan["collectives"]
  assert 0 < plan["used"] < 2**30
  assert plan["bfloat16"] and not plan["bfloat16_sums"]
  # Each network has 4 grouped convolutions. There are 9 passes through them, and 2 gradients of their kernels.
  assert plan["cudnn_convolutions"] == 11 * 4 and not plan["other_convolutions"]
  # In kernels that make several layouts of what they compute anyway; splitting channels into groups adds 14 MB.
  assert plan["transposed_bytes"] < 2.8e6


@pytest.mark.skipif(not GPU_COMPILER.exists(), reason="needs XLA's GPU compiler: make test")
def test_missing_files_of_cuda(tmp_path):
  """They are hidden, wherever XLA looks for them."""
  hidden = ["unshare", "-m", "bash", "-c"]
  if (
    not shutil.which("unshare")
    or subprocess.run([*hidden, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode
  ):
    pytest.skip("needs root, to hide CUDA")
  for part in GPU_COMPILER.iterdir():
    if part.name != "nvidia":
      (tmp_path / part.name).symlink_to(part)
  hide = "for there in /usr/local/cuda*; do [[ ! -d $there ]] || mount -t tmpfs tmpfs $there; done"
  command = f"{hide}; PATH=/usr/bin:/bin exec {sys.executable} main.py --config=configs/cifar10.py:smoke --dry_run"
  done = subprocess.run(
    [*hidden, f"{command} --topology=h100:1x1"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(tmp_path)},
    capture_output=True,
    text=True,
  )
  line = done.stderr.splitlines()[-1]
  assert done.returncode == 2 and line.startswith("error: XLA's GPU compiler lacks files of CUDA (")
