"""Many calls of one command, in one process: it takes seconds to start."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

_CALLS = """
import contextlib, importlib, io, json, sys
import array_record.python.array_record_data_source  # defines flags, which flagsaver would forget
from absl.testing import flagsaver
from r3gan_jax.cli.shared import runner

name, calls = sys.argv[1], json.loads(sys.argv[2])
command = importlib.import_module("main" if name == "main" else f"r3gan_jax.cli.{name}")
command.join_processes = lambda *_: None  # a process joins once
errors = []
for arguments in calls:
  said = io.StringIO()
  with flagsaver.flagsaver(), contextlib.redirect_stderr(said):
    try:
      sys.argv = [name, *arguments]  # where config_flags looks for settings
      runner.run(command.main)
    except SystemExit as end:
      errors.append(said.getvalue().removeprefix("error: ").rstrip() if end.code else None)
      assert end.code in (None, 2), (arguments, end.code, said.getvalue())
print(json.dumps(errors))
"""


def call(environment, name, calls):
  """The error of each call, a list of flags, of main.py or r3gan_jax.cli's `name`; None of one that went well."""
  calls = json.dumps([list(map(str, arguments)) for arguments in calls])
  command = [sys.executable, "-c", _CALLS, name, calls]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])
