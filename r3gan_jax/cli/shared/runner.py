"""Runs a command: parses flags, sets up logging, and turns expected errors into one line and an exit status."""

import logging as standard_logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags, logging

from r3gan_jax.errors import INTERRUPTED, USER_ERROR, Interrupted, UserError

_SIGINT_STATUS = 128 + signal.SIGINT
"""The exit status by which shells report Ctrl-C."""


def run(main: Callable[..., None], max_arguments: int = 0) -> None:
  """Parses flags and calls `main`. Bad flags, `UserError` and `Interrupted` print one line and exit with their status.

  Args:
    max_arguments: how many positional arguments `main` takes at most.
  """
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_only_ours_below_warning)
  # gcsfs logs a traceback of everything that it raises.
  standard_logging.getLogger("gcsfs").setLevel(standard_logging.CRITICAL)

  def guarded(argv: list[str]) -> None:
    try:
      arguments = argv[1:]
      if surplus := arguments[max_arguments:]:
        raise UserError(f"unexpected arguments {surplus}: write flags as --name=value")
      main(*arguments)
    except UserError as error:
      _end(f"error: {error}", USER_ERROR)
    except Interrupted as error:
      _end(str(error), INTERRUPTED)
    except KeyboardInterrupt:
      _end("stopped by Ctrl-C: the same command continues from what is saved", _SIGINT_STATUS)
    except jax.errors.JaxRuntimeError as error:
      if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):  # a restart would not help
        raise
      _end(f"error: another process has ended, or this one failed: {str(error).splitlines()[0]}", INTERRUPTED)

  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  flags.FLAGS.set_gnu_getopt(True)  # flags may follow positional arguments
  try:
    rest = flags.FLAGS(argv)
    if "config" in flags.FLAGS:
      flags.FLAGS.config.to_dict()  # loads the recipe, so that its errors are caught here
    return rest
  except KeyError as error:
    _fail(f"--config has no setting {error}")
  except (flags.Error, OSError, ValueError, TypeError, AttributeError) as error:
    # absl's own errors, and those of loading a recipe or setting one of its fields; the last line says most.
    _fail(str(error).strip().splitlines()[-1].strip())


def _fail(message: str) -> NoReturn:
  _end(f"error: {message}", USER_ERROR)


def _end(message: str, status: int) -> NoReturn:
  print(message, file=sys.stderr, flush=True)
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    sys.stdout.flush()
    os._exit(status)  # a normal exit would wait for the other processes
  sys.exit(status)


def _only_ours_below_warning(record: standard_logging.LogRecord) -> bool:
  """Drops the INFO lines of libraries: Orbax logs every step of a save."""
  return record.levelno >= standard_logging.WARNING or "r3gan_jax" in record.pathname or "/clu/" in record.pathname
