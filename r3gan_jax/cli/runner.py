"""How every command of the project runs: flags, logging, and one line for an error that the user can mend."""

import logging as standard_logging
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from r3gan_jax.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
  """Parses flags and calls `main(argv)`; exits with status 2 after bad flags or a `UserError`, printed as one line."""
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_only_ours_below_warning)

  def guarded(argv: list[str]) -> None:
    try:
      main(argv)
    except UserError as error:
      _fail(error)

  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
    # Besides absl's own errors: what loading a config file and setting a field of it raises.
    _fail(error)


def _fail(error: Exception) -> NoReturn:
  message = " ".join(str(error).split())
  print(f"error: {message}", file=sys.stderr)
  sys.exit(2)


def _only_ours_below_warning(record: standard_logging.LogRecord) -> bool:
  """Orbax and others log every step of their work at INFO."""
  return record.levelno >= standard_logging.WARNING or "r3gan_jax" in record.pathname or "/clu/" in record.pathname
