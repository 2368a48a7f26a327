"""The allocator of long-running commands. Imports nothing else: a process that is started anew imports all again."""

import os
import sys

_KEEP_MEMORY = ":".join(
  f"glibc.malloc.{name}" for name in ("arena_max=1", "hugetlb=1", f"mmap_threshold={2**32}", f"trim_threshold={2**33}")
)


def keep_memory() -> None:
  """Starts this process anew with an allocator that keeps what it frees, in huge pages; for the top of a command.

  XLA's CPU backend allocates its temporaries, GBs, at every step. glibc would return them to the system, and every
  step would fault in each page again. The setting is read when a process starts. Set GLIBC_TUNABLES for another.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = _KEEP_MEMORY
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
