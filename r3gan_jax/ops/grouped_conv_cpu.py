"""The grouped convolution for CPUs: compiles and calls grouped_conv_cpu.cc.

The first use compiles the file for this processor, in a few seconds, and keeps the result in the user's cache
directory. Without a C++ compiler, `available` is False and other algorithms are used.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from r3gan_jax.ops.padding import Padding, output_shape

LANES = 16
"""The output channels of a group must be a multiple of this."""

_SOURCE = Path(__file__).with_suffix(".cc")
_TARGETS = {"r3gan_grouped_conv": "R3ganGroupedConv", "r3gan_weight_gradient": "R3ganGroupedConvWeightGradient"}


def supports(outputs_per_group: int, dtype: jnp.dtype) -> bool:
  """Returns whether the kernels are available and support groups with this many output channels."""
  return dtype == jnp.float32 and outputs_per_group % LANES == 0 and available()


@functools.cache
def available() -> bool:
  """Compiles and registers the kernels; logs once, and returns False, if that is not possible."""
  try:
    library = ctypes.cdll.LoadLibrary(str(_compiled()))
  except (OSError, subprocess.CalledProcessError) as error:
    reason = getattr(error, "stderr", None) or str(error)
    logging.warning(
      "the compiled kernel of grouped convolutions is not available, which makes them slower: %s", reason.strip()[:300]
    )
    return False
  for target, symbol in _TARGETS.items():
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")
  return True


def conv(x: jax.Array, kernel: jax.Array, *, groups: int, padding: Padding) -> jax.Array:
  """Computes the convolution: [N, H, W, G*I], [kh, kw, I, G*O] -> [N, H', W', G*O]."""
  return _call("r3gan_grouped_conv", output_shape(x.shape, kernel.shape, padding), x, kernel, groups, padding)


def weight_gradient(
  x: jax.Array, dy: jax.Array, *, groups: int, padding: Padding, kernel_size: tuple[int, int]
) -> jax.Array:
  """Computes the weight gradient: [N, H, W, G*I], [N, H', W', G*O] -> [kh, kw, I, G*O]."""
  shape = (*kernel_size, x.shape[-1] // groups, dy.shape[-1])
  return _call("r3gan_weight_gradient", shape, x, dy, groups, padding)


def _call(target, shape, x, y, groups, padding):
  if not supports(y.shape[-1] // groups, x.dtype):
    raise ValueError(
      f"the compiled grouped convolution needs a C++ compiler, float32 and a multiple of {LANES} output channels per "
      f"group, not {x.dtype} and {y.shape[-1] // groups}: choose another algorithm, or 'auto'"
    )
  (top, _), (left, _) = padding
  result = jax.ffi.ffi_call(target, jax.typeof(x).update(shape=shape))
  return result(x, y, groups=np.int64(groups), top=np.int64(top), left=np.int64(left))


def _compiled() -> Path:
  """Returns the shared library for this source, jaxlib and processor, compiled if needed.

  Raises:
    OSError: there is no compiler, or no place to keep the result.
    subprocess.CalledProcessError: compiling fails.
  """
  compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
  if compiler is None:
    raise OSError("no C++ compiler found (c++, g++ or clang++)")
  options = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-w"]
  cpuinfo = Path("/proc/cpuinfo")
  processor = (
    next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    if (cpuinfo.exists())
    else platform.processor()
  )
  key = "\n".join([_SOURCE.read_text(), jax.lib.__version__, processor, compiler, *options])
  directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r3gan_jax"
  library = directory / f"grouped_conv_{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
  if not library.exists():
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
      made = Path(temporary) / "made.so"
      command = [compiler, *options, "-I", jax.ffi.include_dir(), str(_SOURCE), "-o", str(made)]
      subprocess.run(command, check=True, capture_output=True, text=True)
      made.replace(library)  # atomic, as several processes may compile at the same time
  return library
