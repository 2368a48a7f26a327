"""How every command of the project runs: flags, logging, and one line for an error that the user can mend."""

import logging as standard_logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from r3gan_jax.errors import UserError

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


def run(main: Callable[[], None]) -> None:
  """Parses flags and calls `main`; exits with status 2 after bad flags or a `UserError`, printed as one line."""
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_only_ours_below_warning)
  # It logs what it raises too, with its traceback.
  standard_logging.getLogger("gcsfs").setLevel(standard_logging.CRITICAL)

  def guarded(argv: list[str]) -> None:
    try:
      if argv[1:]:
        raise UserError(f"unexpected arguments {argv[1:]}: flags look like --name=value")
      main()
    except UserError as error:
      _fail(str(error))

  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
    if "config" in flags.FLAGS:
      flags.FLAGS.config.to_dict()  # a file that cannot be loaded is reported at its first use
    return rest
  except KeyError as error:
    _fail(f"--config has no setting {error}")
  except (flags.Error, OSError, ValueError, TypeError, AttributeError) as error:
    # Besides absl's own errors, what loading a recipe and setting a field of it raise; the last line says most.
    _fail(str(error).strip().splitlines()[-1].strip())


def _fail(message: str) -> NoReturn:
  print(f"error: {message}", file=sys.stderr)
  sys.exit(2)


def _only_ours_below_warning(record: standard_logging.LogRecord) -> bool:
  """Orbax and others log every step of their work at INFO."""
  return record.levelno >= standard_logging.WARNING or "r3gan_jax" in record.pathname or "/clu/" in record.pathname
