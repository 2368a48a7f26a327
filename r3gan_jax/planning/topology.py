"""Chips, cards and their arrangements to plan for, none of which need be here.

topology = parse_topology("v5e:4x4")   # a TPU slice of 16 chips
topology = parse_topology("h100:4x8")  # 4 hosts of 8 GPUs
mesh = open_mesh(topology)             # needs the compiler: the extra "tpu" or "gpu-compiler"
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from r3gan_jax.errors import UserError, one_line
from r3gan_jax.training.mesh import make_mesh

GIB = 2**30


@dataclass(frozen=True)
class Device:
  """The published numbers of one chip or card.

  Attributes:
    platform: "tpu" or "gpu".
    flops: dense bfloat16 FLOP/s.
    bandwidth: of its memory, bytes/s.
    memory: bytes.
    interconnect: bytes/s that it sends to the others of its slice or host, over all its links together.
    network: bytes/s that it sends to other hosts; None: there is none, or no published one.
    compiler: what the compiler must be told: Google Cloud's name of a slice, or XLA's GpuTargetConfigProto.
  """

  platform: str
  flops: float
  bandwidth: float
  memory: int
  interconnect: float
  network: float | None
  compiler: str


def _chip(flops: float, bandwidth: float, memory_gib: int, interconnect: float, accelerator_type: str) -> Device:
  return Device("tpu", flops, bandwidth, memory_gib * GIB, interconnect, None, accelerator_type)


def _card(
  name: str,
  *,
  capability: tuple[int, int],
  cores: int,
  fpus: int,
  shared_memory: int,
  threads: int,
  l2: int,
  clock_ghz: float,
  flops: float,
  bandwidth: float,
  memory: int,
  interconnect: float,
  network: float | None = None,
) -> Device:
  """Returns an NVIDIA card; cores are multiprocessors; fpus, shared memory (bytes) and threads are those of one."""
  # The limits in the first lines hold for all cards; a block may use 1 KiB less than its core's shared memory. Versions
  # are the least that jax[cuda13] 0.10 installs.
  config = f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
      core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock_ghz} threads_per_core_limit: {threads}
      shared_memory_per_core: {shared_memory} shared_memory_per_block_optin: {shared_memory - 1024}
      memory_bandwidth: {bandwidth:.0f} l2_cache_size: {l2} device_memory_size: {memory}
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 12 }}
    runtime_version {{ major: 13 minor: 0 }}
    device_description_str: "{name}"
  """
  return Device("gpu", flops, bandwidth, memory, interconnect, network, config)


DEVICES: Mapping[str, Device] = {
  "v4": _chip(275e12, 1228e9, 32, 300e9, "v4-8"),
  "v5e": _chip(197e12, 819e9, 16, 200e9, "v5litepod-4"),
  "v5p": _chip(459e12, 2765e9, 95, 600e9, "v5p-8"),
  "v6e": _chip(918e12, 1640e9, 32, 400e9, "v6e-4"),
  "h100": _card(
    "NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    fpus=128,
    shared_memory=233472,
    threads=2048,
    l2=52428800,
    clock_ghz=1.98,
    flops=989e12,
    bandwidth=3352.32e9,
    memory=84942979072,
    interconnect=450e9,
    network=50e9,
  ),
  "a100": _card(
    "NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    cores=108,
    fpus=64,
    shared_memory=167936,
    threads=2048,
    l2=41943040,
    clock_ghz=1.41,
    flops=312e12,
    bandwidth=2039.04e9,
    memory=85100068864,
    interconnect=300e9,
    network=25e9,
  ),
  "b200": _card(
    "NVIDIA B200",
    capability=(10, 0),
    cores=148,
    fpus=128,
    shared_memory=233472,
    threads=2048,
    l2=132644864,
    clock_ghz=1.965,
    flops=2250e12,
    bandwidth=7672.32e9,
    memory=191514411008,
    interconnect=900e9,
    network=50e9,
  ),
  "a6000": _card(
    "NVIDIA RTX A6000",
    capability=(8, 6),
    cores=84,
    fpus=128,
    shared_memory=102400,
    threads=1536,
    l2=6291456,
    clock_ghz=1.8,
    flops=155e12,
    bandwidth=768.096e9,
    memory=51041271808,
    interconnect=32e9,
  ),
  "l40": _card(
    "NVIDIA L40",
    capability=(8, 9),
    cores=142,
    fpus=128,
    shared_memory=102400,
    threads=1536,
    l2=100663296,
    clock_ghz=2.49,
    flops=181.05e12,
    bandwidth=864e9,
    memory=47803596800,
    interconnect=32e9,
  ),
}
"""Name before the colon of a topology -> device.

TPUs: https://cloud.google.com/tpu/docs/v6e and its siblings, which state the interconnect bandwidth of both directions
together (v5e: 400 GB/s); links of v4: arXiv 2304.01433.

GPUs: NVIDIA's data sheets. Half of NVLink's bandwidth goes each way (H100 SXM: 900 GB/s); the A6000 and the L40, which
no switch of NVLink joins, send through PCIe 4.0 x16, 64 GB/s in both directions. Networks are those of a DGX, which has
one port of 400 Gb/s for each H100 or B200, and one of 200 Gb/s for each A100. Memory is what CUDA reports: for the L40,
what it reports of the L40S, which has the same.
"""


@dataclass(frozen=True)
class Topology:
  """Devices of one kind that train together.

  Attributes:
    name: e.g. "v5e:2x2" or "h100:1x8".
    device: each of them.
    shape: of a TPU slice; (hosts, cards a host).
  """

  name: str
  device: Device
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """The number of devices."""
    return math.prod(self.shape)

  @property
  def hosts(self) -> int:
    """The number of groups of devices that only a network joins; the hosts of a TPU slice share its interconnect."""
    return self.shape[0] if self.device.platform == "gpu" else 1

  @property
  def usable_memory(self) -> float:
    """Bytes per device that a program may use.

    On a TPU all of it: the compiler subtracts what it reserves, and refuses a program that does not fit. On a GPU the
    share that JAX's allocator takes, three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise: outside it
    are CUDA's context, its kernels and NCCL's buffers.
    """
    if self.device.platform == "tpu":
      return self.device.memory
    return float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")) * self.device.memory

  def all_reduce_seconds(self, size: int) -> float | None:
    """Returns the least time to sum `size` bytes over all devices, on rings that use every link.

    In a ring of n each sends 2 (n - 1) / n of the bytes. Between hosts each device sends its own part of the bytes
    while those of one host exchange others. None: the bandwidth between the hosts is unknown.
    """
    a_host = self.size // self.hosts
    inside = 2 * (a_host - 1) / a_host * size / self.device.interconnect
    if self.hosts == 1:
      return inside
    if self.device.network is None:
      return None
    return max(inside, 2 * (self.hosts - 1) / self.hosts * size / a_host / self.device.network)


def parse_topology(name: str) -> Topology:
  """Returns the topology that is called DEVICE:SHAPE, e.g. "v5e:4x4", "v4:4x4x4" or "h100:4x8": 4 hosts of 8 cards.

  Raises:
    UserError: the device is not in `DEVICES`, or the shape is malformed.
  """
  device, _, shape = name.partition(":")
  sizes = shape.split("x")
  dimensions = {"tpu": (2, 3), "gpu": (2,)}
  if (
    device not in DEVICES
    or len(sizes) not in dimensions[DEVICES[device].platform]
    or not all(size.isdecimal() and int(size) for size in sizes)
  ):
    raise UserError(
      f"unknown topology {name!r}: give one of {sorted(DEVICES)} and a shape, the slice of a TPU (v5e:4x4) or hosts x "
      "cards a host (h100:1x8)"
    )
  return Topology(name, DEVICES[device], tuple(map(int, sizes)))


def open_mesh(topology: Topology) -> Mesh:
  """Returns the mesh of a topology; raises a UserError if its compiler is missing or rejects it."""
  return make_mesh((_tpus if topology.device.platform == "tpu" else _gpus)(topology))


def _tpus(topology: Topology) -> list[jax.Device]:
  if find_spec("libtpu") is None:
    raise UserError("compiling for a TPU needs libtpu: pip install -e '.[tpu]'")
  # libtpu reads these when it loads; without them it waits for a TPU's metadata server.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", topology.device.compiler)
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_WORKER_ID", "0")
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices
  except (jax.errors.JaxRuntimeError, RuntimeError) as error:
    raise UserError(f"libtpu rejects the topology {topology.name!r}: {str(error).splitlines()[0]}") from error


def _gpus(topology: Topology) -> list[jax.Device]:
  cure = "pip install -e '.[gpu-compiler]'"
  if find_spec("jax_cuda13_plugin") is None:
    raise UserError(f"compiling for a GPU needs XLA's GPU compiler: {cure}")
  hosts, cards = topology.shape
  devices = topologies.get_topology_desc(
    topology.name, platform="cuda", target_config=topology.device.compiler, topology=f"{hosts}x1x{cards}"
  ).devices
  try:  # a whole iteration would fail only after a minute
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=SingleDeviceSharding(devices[0]))
    jax.jit(jnp.exp).lower(scalar).compile()
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f"XLA's GPU compiler lacks files of CUDA ({one_line(error)}): {cure}") from None
  return devices
