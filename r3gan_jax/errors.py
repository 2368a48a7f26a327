"""The exceptions that commands tell the user about without a traceback, and their exit statuses."""

USER_ERROR = 2
INTERRUPTED = 75
"""EX_TEMPFAIL of sysexits.h: the same command, run again, goes on."""


class UserError(Exception):
  """Bad input: the message is one line that names the setting or file and says how to mend it.

  Commands print the message alone, without a traceback, and exit with status `USER_ERROR`.
  """


class Interrupted(Exception):
  """The command was stopped from outside, with nothing lost; it exits with status `INTERRUPTED`."""


def one_line(error: Exception) -> str:
  """The text of an exception, as part of a message; its type where it has none."""
  return " ".join(str(error).split()) or type(error).__name__
