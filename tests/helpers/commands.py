"""The user's commands, each in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
READ_AT_START = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "PYTHONWARNINGS")


class Command:
  """A running command: main.py, or another name of r3gan_jax.cli. It starts in no time: see fork_server.py."""

  def __init__(self, environment, name, *flags):
    self._server = _server(environment)
    self._directory = tempfile.mkdtemp()
    self._output = [f"{self._directory}/{stream}" for stream in ("stdout", "stderr")]
    environment = environment | {"GLIBC_TUNABLES": ""}  # if it is not set, main.py starts Python again
    request = {"name": name, "flags": list(map(str, flags)), "environment": environment, "output": self._output}
    self.returncode = None
    self.pid = self._ask(request)

  def _ask(self, request):
    print(json.dumps(request), file=self._server.stdin, flush=True)
    return json.loads(self._server.stdout.readline())

  def poll(self):
    """Returns the exit status, or None while it runs."""
    if self.returncode is None:
      self.returncode = self._ask(self.pid)
    return self.returncode

  def printed(self):
    """Returns what it has written to stdout until now."""
    return Path(self._output[0]).read_text()

  def finish(self, timeout=240):
    """Waits, and kills it after `timeout` seconds; returns itself, with what it wrote to `stdout` and `stderr`."""
    deadline = time.monotonic() + timeout
    while self.poll() is None:
      if time.monotonic() > deadline:
        self.send_signal(signal.SIGKILL)
      time.sleep(0.01)
    self.stdout, self.stderr = (Path(path).read_text() for path in self._output)
    shutil.rmtree(self._directory)
    return self

  def send_signal(self, number):
    os.kill(self.pid, number)


_servers = {}


def _server(environment):
  key = tuple(environment[name] for name in READ_AT_START)
  if key not in _servers:
    program, pipe = [sys.executable, "-m", "tests.helpers.fork_server"], subprocess.PIPE
    _servers[key] = subprocess.Popen(program, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
  return _servers[key]


def stop():
  """Ends the servers, and with them every command that still runs."""
  while _servers:
    _servers.popitem()[1].communicate()


def run(environment, name, *flags, status=0):
  """Runs a command that ends with this status."""
  done = Command(environment, name, *flags).finish()
  assert done.returncode == status, done.stderr
  return done


def call(environment, name, calls):
  """Returns the error of each call, a list of flags, or None of one that went well; all in one process (calls.py)."""
  done = run(environment, "calls", name, json.dumps([list(map(str, flags)) for flags in calls]))
  return json.loads(done.stdout.splitlines()[-1])


def refused(environment, name, *flags):
  """Returns the error of bad input: the process ends with status 2, and one line says why."""
  done = run(environment, name, *flags, status=2)
  line = done.stderr.strip().splitlines()[-1]
  assert line.startswith("error: ") and "Traceback" not in done.stderr, done.stderr
  return line.removeprefix("error: ")
