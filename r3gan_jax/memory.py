"""The memory allocator of long-running commands. Imports little, as a restarted process imports everything again."""

import os
import sys

_KEEP_MEMORY = ":".join(
  f"glibc.malloc.{name}" for name in ("arena_max=1", "hugetlb=1", f"mmap_threshold={2**32}", f"trim_threshold={2**33}")
)


def keep_memory() -> None:
  """Restarts this process with an allocator that keeps freed memory, in huge pages. Call it before other imports.

  XLA's CPU backend allocates gigabytes of temporaries at every step. By default glibc returns them to the system, and
  every step faults in each page again. glibc reads the setting at process start only. A GLIBC_TUNABLES of the user's
  is left as it is.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = _KEEP_MEMORY
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
