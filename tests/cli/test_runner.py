"""What all commands do with their flags: help, mistakes in them and in recipes, devices that are not there."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from r3gan_jax import cli

ROOT = Path(__file__).parent.parent.parent
COMMANDS = sorted(path.stem for path in (ROOT / "r3gan_jax/cli").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", ["main", *COMMANDS])
def test_help_has_examples_and_explains_every_flag(command, name):
  shown = command(name, "--help").stdout
  explained, _, listed = shown.partition("\nFlags:\n")
  assert ("python main.py" if name == "main" else f"python -m r3gan_jax.cli.{name}") in explained
  flags = [line for line in listed.splitlines() if line.startswith("  --")]
  assert flags and all(len(line.split(maxsplit=1)) == 2 for line in flags)


def test_help_names_defaults(command):
  assert "--seeds=...            Seeds, e.g. 0-63 or 1,5,10-19. Default: 0-63." in command("sample", "--help").stdout


@pytest.mark.parametrize(
  "flags, message",
  [
    (("--nope=1",), "unknown flag --nope"),
    ((), "--config is missing"),
    (("--config=configs/cifar10.py", "--config.batch_sise=3"), "no setting 'batch_sise': did you mean 'batch_size'?"),
    (("--config=configs/cifar10.py", "--config.gan.zzz=3"), "there is no setting 'zzz'"),
    (("--config=nowhere.py",), "--config=nowhere.py: there is no such recipe"),
  ],
)
def test_mistakes_in_flags(refused, flags, message):
  assert message in refused("main", *flags)


@pytest.mark.parametrize(
  "line, message",
  [
    ("  config.learningrate = 3", "line 5: there is no setting 'learningrate'"),
    ("  config.data.colour = 3", "line 5: there is no setting 'colour'"),
    ("  config.batch_size = config.gan.width[0]", "line 5: "),
    ("  import no_such_module", "line 5: No module named 'no_such_module'"),
    ("  config = (", "line 5: "),
  ],
)
def test_mistakes_in_a_recipe_are_errors_where_they_are(refused, tmp_path, line, message):
  recipe = tmp_path / "mine.py"
  recipe.write_text(
    f"from configs import common\n\ndef get_config():\n  config = common.get_config()\n{line}\n  return config\n"
  )
  assert f"{recipe}, {message}" in refused("main", f"--config={recipe}")


def test_a_platform_that_is_not_there(environment, tmp_path):
  program = [sys.executable, "main.py", "--config=configs/cifar10.py:smoke", f"--workdir={tmp_path}/run"]
  done = subprocess.run(program, env=environment | {"JAX_PLATFORMS": "cuda"}, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS=cuda: no such device")
  assert not (tmp_path / "run").exists()


TALKATIVE = """
import sys, time
from pathlib import Path
from r3gan_jax.cli.shared import runner

def main(path, then):
  for _ in range(10000):
    print("a line", flush=True)
  Path(path).write_text("the work")
  time.sleep(int(then))

runner.run(main, max_arguments=2)
"""


@pytest.mark.parametrize("output", ["full", "pipe", "closed"])
def test_an_output_that_cannot_be_written_loses_no_work(environment, tmp_path, output):
  """A reader that has had enough, such as head, is no error; a full disk is one, in one line."""
  program = [sys.executable, "-c", TALKATIVE, str(tmp_path / "file"), "0"]
  if output == "closed":
    program = ["sh", "-c", 'exec "$@" >&-', "sh", *program]
  reading, writing = os.pipe()
  os.close(reading)
  if output == "full":
    os.close(writing)
    writing = os.open("/dev/full", os.O_WRONLY)
  done = subprocess.run(program, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
  os.close(writing)
  assert (tmp_path / "file").read_text() == "the work"
  if output == "full":
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output cannot be written (No space") and done.stderr.count("\n") == 1
  else:
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number, status, said", [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 75, "SIGTERM")])
def test_a_signal_is_one_line(environment, tmp_path, number, status, said):
  program = [sys.executable, "-c", TALKATIVE, str(tmp_path / "file"), "100"]
  streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  with subprocess.Popen(program, env=environment, text=True, **streams) as running:
    for _ in range(10000):
      running.stdout.readline()
    running.send_signal(number)
    error = running.stderr.read()
  assert running.returncode == status
  assert error.startswith(f"stopped by {said}: ") and error.count("\n") == 1


@pytest.mark.parametrize(
  "program, quiet", [("-m", True), ("/repository/main.py", True), ("/bin/r3gan", True), ("/bin/pytest", False)]
)
def test_ctrl_c_while_a_command_is_imported(monkeypatch, program, quiet):
  """A command dies of the signal, without a traceback; a user's program that imports one is left alone."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    monkeypatch.setattr(sys, "argv", [program])
    importlib.reload(cli)
    assert signal.getsignal(signal.SIGINT) is (signal.SIG_DFL if quiet else signal.default_int_handler)
  finally:
    signal.signal(signal.SIGINT, before)
