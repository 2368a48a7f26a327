"""Exceptions that commands report without a traceback, and their exit statuses."""

USER_ERROR = 2
INTERRUPTED = 75
"""EX_TEMPFAIL of sysexits.h: the same command, run again, continues."""


class UserError(Exception):
  """Bad input; the message is one line that names the setting or file, the value, and the cure.

  Commands print the message without a traceback and exit with status `USER_ERROR`.
  """


class Interrupted(Exception):
  """The command was stopped from outside, with nothing lost; the exit status is `INTERRUPTED`."""


def one_line(error: BaseException) -> str:
  """Returns the text of an exception on one line, or its type if it has none."""
  return " ".join(str(error).split()) or type(error).__name__
