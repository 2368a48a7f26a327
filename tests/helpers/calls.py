"""Many calls of one command in one process, which share what JAX has compiled: `commands.call`.

Flags: the command's name, and a list of lists of flags in JSON. Prints the list of errors, null for a call without one.
"""

import contextlib
import importlib
import io
import json
import sys

import array_record.python.array_record_data_source  # noqa: F401  defines flags, which flagsaver would forget
from absl.testing import flagsaver

from r3gan_jax.cli.shared import runner

_, name, calls = sys.argv
command = importlib.import_module(f"r3gan_jax.cli.{'train' if name == 'main' else name}")
command.join_processes = lambda *_: None  # a process joins once
errors = []
for flags in json.loads(calls):
  said = io.StringIO()
  with flagsaver.flagsaver(), contextlib.redirect_stderr(said):
    try:
      sys.argv = [name, *flags]  # where config_flags looks for settings
      runner.run(command.main)
    except SystemExit as end:
      errors.append(said.getvalue().removeprefix("error: ").rstrip() if end.code else None)
      assert end.code in (None, 2), (flags, end.code, said.getvalue())
print(json.dumps(errors))
