"""The commands: `r3gan NAME`, or `python -m r3gan_jax.cli.NAME`."""

import os
import signal
import sys

_program = os.path.basename(sys.argv[0])
if _program in ("-m", "main.py", "r3gan") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  # A command is about to be imported, for seconds: until `runner.run`, Ctrl-C ends it without a traceback.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
