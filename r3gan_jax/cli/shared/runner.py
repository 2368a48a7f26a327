"""Runs a command: parses flags, sets up logging, and turns expected errors into one line and an exit status."""

import logging as standard_logging
import os
import re
import signal
import sys
import sysconfig
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

import jax
from absl import app, flags, logging

from r3gan_jax.errors import INTERRUPTED, USER_ERROR, Interrupted, UserError, one_line

_PACKAGE_NAME = "r3gan_jax"
_PACKAGE = str(Path(__file__).parents[2])
_SIGINT_STATUS = 128 + signal.SIGINT
"""The exit status by which shells report Ctrl-C."""


class _Output:
  """Standard output or error, which may be full or closed: the command goes on, and `error` is the first reason."""

  def __init__(self, stream: TextIO | None):
    self.stream = stream or open(os.devnull, "w")  # noqa: SIM115  the shell has closed it
    self.error: OSError | None = None

  def write(self, text: str) -> int:
    with self._guarded():
      self.stream.write(text)
    return len(text)

  def flush(self) -> None:
    with self._guarded():
      self.stream.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self.stream, name)

  @contextmanager
  def _guarded(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self.error = self.error or error
      # What is still buffered must go somewhere when Python exits.
      os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def run(main: Callable[..., None], max_arguments: int = 0) -> None:
  """Parses flags and calls `main`. Bad flags, `UserError` and `Interrupted` print one line and exit with their status.

  Args:
    max_arguments: how many positional arguments `main` takes at most.
  """
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()  # now, as it replaces handlers of the same sys.stderr only
  logging.get_absl_handler().addFilter(_is_for_users)
  sys.excepthook = _without_libraries(sys.excepthook)
  threading.excepthook = _without_libraries(threading.excepthook)
  sys.unraisablehook = _without_libraries(sys.unraisablehook)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # Orbax's, after a save that failed
  signal.signal(signal.SIGTERM, _stop)
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see cli/__init__.py
    signal.signal(signal.SIGINT, signal.default_int_handler)
  for name in ("asyncio", "gcsfs"):  # they log a traceback of everything that they raise
    standard_logging.getLogger(name).setLevel(standard_logging.CRITICAL)

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
    except jax.errors.JaxRuntimeError as error:
      if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):  # a restart would not help
        raise
      _end(f"error: another process has ended, or this one failed: {str(error).splitlines()[0]}", INTERRUPTED)
    except (AssertionError, RuntimeError) as error:  # without a GPU, JAX_PLATFORMS=cuda fails an assertion of JAX
      if traceback.extract_tb(error.__traceback__)[-1].name != "backends":
        raise
      _fail(f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: no such device can be used here: {one_line(error)}")

  out, err = _Output(sys.stdout), _Output(sys.stderr)
  with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
    try:
      app.run(guarded, flags_parser=_parse)
    except KeyboardInterrupt:
      signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends at once
      _end("stopped by Ctrl-C: the same command continues from what is saved", _SIGINT_STATUS)
    except SystemExit as end:
      out.flush()
      err.flush()
      if not end.code and out.error and not isinstance(out.error, BrokenPipeError):  # | head is no error
        _fail(f"standard output cannot be written ({out.error.strerror}); files that the command writes are complete")
      raise


def _parse(argv: list[str]) -> list[str]:
  if not {"-h", "-help", "--help", "--helpshort", "--helpfull"}.isdisjoint(argv[1:]):
    print(_help())
    sys.exit()
  flags.FLAGS.set_gnu_getopt(True)  # flags may follow positional arguments
  try:
    rest = flags.FLAGS(argv)
    for name in {"config", "comparison"}.intersection(flags.FLAGS):
      if recipe := getattr(flags.FLAGS, name):
        recipe.to_dict()  # loads it, so that its errors are caught here
    return rest
  except flags.UnrecognizedFlagError as error:
    _fail(f"unknown flag --{error.flagname}: --help lists the flags")
  except Exception as error:  # absl's own errors, and anything that a recipe raises
    _fail(_parse_error(error))


def _parse_error(error: BaseException) -> str:
  """Returns what is wrong with the flags, in one line: the flag, or the line of the recipe."""
  if missing := re.search(r"[Ff]lag --(\w+) must have a value other than None", str(error)):
    return f"--{missing[1]} is missing: --help explains the flags"
  chain = [error]
  while context := chain[-1].__context__:  # absl and ml_collections wrap what a recipe raises
    chain.append(context)
  for link in chain:
    if isinstance(link, UserError):
      return str(link)
  place = next(filter(None, map(_place_in_recipe, chain)), "")
  cause = chain[-1]
  if isinstance(cause, KeyError) and (name := re.search(r"(\w+)(?:\" does not exist|'?\n|'?$)", str(cause.args[0]))):
    meant = re.search(r'Did you mean "(\w+)"', " ".join(map(str, chain)))
    return f"{place}there is no setting {name[1]!r}" + (f": did you mean {meant[1]!r}?" if meant else "")
  return place + str(cause if place else error).strip().splitlines()[-1].strip()


def _place_in_recipe(error: BaseException) -> str:
  """Returns "FILE, line N: " of the innermost frame in a file that is neither ours nor a library's; "" without one."""
  if isinstance(error, SyntaxError):
    return f"{error.filename}, line {error.lineno}: "
  ours = ("<", _PACKAGE, sysconfig.get_path("stdlib"), getattr(sys.modules["__main__"], "__file__", "<"))
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith(ours) and "site-packages" not in frame.filename
  ]
  return f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""


def _help() -> str:
  """Returns the docstring of the command, which has examples, and its flags with their defaults."""
  main = sys.modules["__main__"]
  shared = [name for name in flags.FLAGS.flags_by_module_dict() if name.startswith(_PACKAGE_NAME + ".cli.shared")]
  lines = [(main.__doc__ or "").strip(), "", "Flags:"]
  for module in (sys.argv[0], *shared):
    for flag in flags.FLAGS.get_flags_for_module(module):
      default = "" if flag.default in (None, "") else f" Default: {str(flag.default_as_str).strip(chr(39))}."
      required = " Required." * any("other than None" in str(check.message) for check in flag.validators)
      name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}=..."
      words = re.sub(r";\s+repeat this option.*", "", flag.help) + required + default
      lines += textwrap.wrap(words, 100, initial_indent=f"  {name:<22} ", subsequent_indent=" " * 25)
  return "\n".join(lines)


def _stop(signum: int, frame: FrameType | None) -> None:
  """Ends the process at once: an exception could come where it is lost, or where it leaves threads that never end."""
  with suppress(OSError):
    os.write(2, b"stopped by SIGTERM: the same command continues, or begins again\n")
  os._exit(INTERRUPTED)


def _fail(message: str) -> NoReturn:
  _end(f"error: {message}", USER_ERROR)


def _end(message: str, status: int) -> NoReturn:
  with suppress(OSError):  # the log may be on a disk that is full
    print(message, file=sys.stderr, flush=True)
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    sys.stdout.flush()
    os._exit(status)  # a normal exit would wait for the other processes
  sys.exit(status)


def _is_for_users(record: standard_logging.LogRecord) -> bool:
  """Drops the INFO lines of libraries, and all of Orbax's: a save that fails is reported once, by us."""
  is_ours = record.pathname.startswith(_PACKAGE) or "/clu/" in record.pathname
  return is_ours or (record.levelno >= standard_logging.WARNING and "/orbax/" not in record.pathname)


def _without_libraries(hook: Callable[..., object]) -> Callable[..., None]:
  """Returns a hook that drops errors outside our code: those of Orbax's threads and callbacks, if a save fails."""

  def quiet(*error: Any) -> None:
    trace = error[0].exc_traceback if len(error) == 1 else error[2]
    if any(frame.filename.startswith(_PACKAGE) for frame in traceback.extract_tb(trace)):
      hook(*error)

  return quiet
