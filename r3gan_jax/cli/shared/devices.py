"""Shares out the cores and NVIDIA GPUs of this machine among several processes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def cores() -> list[int]:
  """Returns the cores of this process; [] where processes cannot be pinned."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def gpus() -> list[str]:
  """Returns the NVIDIA GPUs that JAX would take, as CUDA_VISIBLE_DEVICES names them; this process takes none."""
  if os.environ.get("JAX_PLATFORMS", "cuda") not in ("cuda", "gpu"):
    return []
  named = os.environ.get("CUDA_VISIBLE_DEVICES")
  if named is not None:
    return [name for name in named.split(",") if name]
  return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def share(items: Sequence[T], slot: int, jobs: int) -> list[T]:
  """Returns what one of so many runs at a time gets: items of its own, as long as there are enough."""
  return list(items[slot::jobs]) or [*items[slot % max(len(items), 1) :][:1]]
