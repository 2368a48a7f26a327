"""Commands in several processes at once, joined on loopback."""

import socket
import time

from helpers.commands import Command


class Processes:
  """The same command in each of several processes, joined on a free port, each with `devices` devices.

  In a flag and in $HOME, {} is the number of the process.
  """

  def __init__(self, environment, count, devices, *arguments):
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      port = probe.getsockname()[1]
    environment = environment | {"JAX_NUM_CPU_DEVICES": str(devices)}
    join = (f"--coordinator=localhost:{port}", f"--num_processes={count}") if count > 1 else ()
    self.processes = [
      Command(
        environment | {"HOME": environment["HOME"].replace("{}", str(index))},
        *(argument.replace("{}", str(index)) for argument in map(str, arguments)),
        *join,
        *([f"--process_id={index}"] if join else []),
      )
      for index in range(count)
    ]

  def finish(self, *statuses, timeout=240):
    """Waits; returns what each printed."""
    printed = [done.stdout + done.stderr for done in (process.finish(timeout) for process in self.processes)]
    assert [process.returncode for process in self.processes] == list(statuses), "\n".join(printed)
    return printed

  def wait_for(self, path):
    while not path.exists():
      assert all(process.poll() is None for process in self.processes)
      time.sleep(0.05)
