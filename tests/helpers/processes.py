"""Commands in several processes at once, joined on loopback."""

import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Processes:
  """The same command in each of several processes, joined on a free port, each with `devices` devices."""

  def __init__(self, environment, count, devices, *arguments):
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      port = probe.getsockname()[1]
    join = (f"--coordinator=localhost:{port}", f"--num_processes={count}") if count > 1 else ()
    self.processes = [
      subprocess.Popen(
        [sys.executable, *arguments, *join, *([f"--process_id={index}"] if join else [])],
        cwd=ROOT,
        env=environment | {"JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for index in range(count)
    ]

  def finish(self, *statuses):
    """Waits; returns what each printed."""
    try:
      printed = [process.communicate(timeout=240)[0] for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()
    assert [process.returncode for process in self.processes] == list(statuses), "\n".join(printed)
    return printed

  def wait_for(self, path):
    while not path.exists():
      assert all(process.poll() is None for process in self.processes)
      time.sleep(0.05)
