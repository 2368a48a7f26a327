"""The console command: `r3gan COMMAND --FLAG=VALUE ...`, or `python -m r3gan_jax.cli COMMAND ...`."""

import runpy
import sys
from pathlib import Path

from r3gan_jax.cli.shared.docstrings import first_line
from r3gan_jax.errors import USER_ERROR

_COMMANDS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> None:
  """Runs the command that the first argument names, as `python -m r3gan_jax.cli.COMMAND` does.

  Imports nothing of it before, as some commands restart the process first (memory.py).
  """
  name, *flags = sys.argv[1:] or ["--help"]
  if name in ("-h", "--help", "help"):
    print(_help())
  elif name in _COMMANDS:
    sys.argv[1:] = flags
    runpy.run_module(f"r3gan_jax.cli.{name}", run_name="__main__", alter_sys=True)
  else:
    print(f"error: unknown command {name!r}: choose from {', '.join(_COMMANDS)}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _help() -> str:
  """Returns a line for each command."""
  described = {name: first_line(Path(__file__).with_name(f"{name}.py")) for name in _COMMANDS}
  lines = [f"  {name:<20} {line}" for name, line in described.items()]
  return "\n".join(["r3gan COMMAND --FLAG=VALUE ...", "", *lines, "", "r3gan COMMAND --help explains a command."])


if __name__ == "__main__":
  main()
