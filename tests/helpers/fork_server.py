"""Runs each command in a fork of one process that has imported what the commands need: imports take seconds.

Reads one JSON request a line. {"name", "flags", "environment", "output"} starts a command and is answered by its
process id; a process id is answered by its exit status, or null while it runs. When requests end, all are killed.
"""

import gc
import json
import os
import runpy
import signal
import sys

import jax
import matplotlib.figure  # noqa: F401

import r3gan_jax.cli.shared.processes
import r3gan_jax.cli.shared.runner
import r3gan_jax.planning.plan
import r3gan_jax.runs  # noqa: F401

gc.freeze()  # or the collector would copy every page into every fork
requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
running = set()
for line in requests:
  request = json.loads(line)
  if isinstance(request, int):
    ended, status = os.waitpid(request, os.WNOHANG)
    running.discard(ended)
    answer = os.waitstatus_to_exitcode(status) if ended else None
  else:
    answer = os.fork()
    if not answer:
      break  # the rest of this file is the command
    running.add(answer)
  print(json.dumps(answer), file=answers, flush=True)
else:
  for pid in running:
    os.kill(pid, signal.SIGKILL)
  sys.exit()

os.environ.clear()
os.environ.update(request["environment"])
if devices := os.environ.get("JAX_NUM_CPU_DEVICES"):  # too late for JAX, which reads it when it is imported
  jax.config.update("jax_num_cpu_devices", int(devices))
for descriptor, path in enumerate((os.devnull, *request["output"])):
  os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
sys.argv = ["main.py", *request["flags"]]
if request["name"] == "main":
  runpy.run_path("main.py", run_name="__main__")
elif request["name"] == "calls":
  runpy.run_module("tests.helpers.calls", run_name="__main__")
else:
  runpy.run_module(f"r3gan_jax.cli.{request['name']}", run_name="__main__", alter_sys=True)
