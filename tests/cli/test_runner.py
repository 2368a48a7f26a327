"""What all commands do with their flags: help, mistakes in them and in recipes, devices that are not there."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMANDS = sorted(path.stem for path in (ROOT / "r3gan_jax/cli").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", ["main", *COMMANDS])
def test_help_has_examples_and_explains_every_flag(command, name):
  shown = command(name, "--help").stdout
  explained, _, listed = shown.partition("\nFlags:\n")
  assert f"python {'main.py' if name == 'main' else f'-m r3gan_jax.cli.{name}'}" in explained
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
    (("--config=nowhere.py",), "'nowhere.py'"),
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
