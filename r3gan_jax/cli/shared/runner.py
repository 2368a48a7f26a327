"""How every command of the project runs: flags, logging, and one line for what the user should know."""

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
"""The status that shells report of a command that ends by Ctrl-C."""


def run(main: Callable[..., None], max_arguments: int = 0) -> None:
  """Parses flags and calls `main`. Bad flags, a `UserError` and `Interrupted` end it with one line and their status.

  Args:
    max_arguments: how many arguments that are no flags `main` takes; none need be given.
  """
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_only_ours_below_warning)
  # It logs what it raises too, with its traceback.
  standard_logging.getLogger("gcsfs").setLevel(standard_logging.CRITICAL)

  def guarded(argv: list[str]) -> None:
    try:
      arguments = argv[1:]
      if surplus := arguments[max_arguments:]:
        raise UserError(f"unexpected arguments {surplus}: flags look like --name=value")
      main(*arguments)
    except UserError as error:
      _end(f"error: {error}", USER_ERROR)
    except Interrupted as error:
      _end(str(error), INTERRUPTED)
    except KeyboardInterrupt:
      _end("stopped by Ctrl-C: the same command goes on from what is saved", _SIGINT_STATUS)
    except jax.errors.JaxRuntimeError as error:
      if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):  # starting again would not help
        raise
      _end(f"error: another process is gone, or this one failed: {str(error).splitlines()[0]}", INTERRUPTED)

  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  flags.FLAGS.set_gnu_getopt(True)  # flags may follow arguments
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
  _end(f"error: {message}", USER_ERROR)


def _end(message: str, status: int) -> NoReturn:
  print(message, file=sys.stderr, flush=True)
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    sys.stdout.flush()
    os._exit(status)  # an orderly exit would wait for the other processes
  sys.exit(status)


def _only_ours_below_warning(record: standard_logging.LogRecord) -> bool:
  """Orbax and others log every step of their work at INFO."""
  return record.levelno >= standard_logging.WARNING or "r3gan_jax" in record.pathname or "/clu/" in record.pathname
