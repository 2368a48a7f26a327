"""The commands: `python -m r3gan_jax.cli.NAME`."""

import os
import signal
import sys

if os.path.basename(sys.argv[0]) in ("-m", "main.py") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  # A command is about to be imported, for seconds: until `runner.run`, Ctrl-C ends it without a traceback.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
