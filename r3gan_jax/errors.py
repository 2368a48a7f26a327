"""The one exception for what a user can mend."""


class UserError(Exception):
  """Bad input: the message is one line that names the setting or file and says how to mend it.

  Commands print the message alone, without a traceback, and exit with a status other than 0.
  """
