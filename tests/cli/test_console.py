"""The console command, and the recipes that come along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r3gan_jax.cli.shared.recipes import find_recipe, recipes
from r3gan_jax.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def r3gan(*arguments):
  program = [sys.executable, "-m", "r3gan_jax.cli", *arguments]
  return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)


def test_help_describes_every_command():
  shown = r3gan()
  assert shown.returncode == 0 and shown.stdout == r3gan("--help").stdout
  commands = sorted(path.stem for path in (ROOT / "r3gan_jax" / "cli").glob("[a-z]*.py"))
  lines = [line.split(maxsplit=1) for line in shown.stdout.splitlines() if line.startswith("  ")]
  assert [line[0] for line in lines] == commands and "train" in commands
  assert ["sample", "Draws images from a trained run"] in lines


def test_an_unknown_command_is_one_line_with_the_list():
  done = r3gan("trian", "--config=configs/cifar10.py")
  assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
  assert "'trian'" in done.stderr and " train," in done.stderr


def test_flags_are_those_of_the_command():
  assert r3gan("recipes", "--show=configs/cifar10.py").stdout == (ROOT / "configs" / "cifar10.py").read_text()


def test_every_recipe_is_listed(command):
  """All files of configs/ but those that only share."""
  names = list(recipes())
  directories = [ROOT / "configs", ROOT / "configs" / "zoo", ROOT / "configs" / "comparisons"]
  files = [path for directory in directories for path in directory.glob("*.py") if "def get_config" in path.read_text()]
  assert set(names) == {os.path.relpath(path, ROOT) for path in files if path.name != "common.py"}
  assert [line.split()[0] for line in command("recipes").stdout.splitlines()] == names


def test_a_file_goes_before_a_recipe_that_comes_along(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = "configs/cifar10.py"
  assert find_recipe("config", name) == ROOT / name
  (tmp_path / "configs").mkdir()
  (tmp_path / name).write_text("")
  assert find_recipe("config", name).resolve() == tmp_path / name
  for wrong in ("configs/cifar.py", "setup.py", "configs", "configs/common.py"):
    with pytest.raises(UserError, match=f"--config={wrong}: there is no such recipe"):
      find_recipe("config", wrong)


def test_recipes_import_configs_wherever_the_command_runs(tmp_path):
  """And not the user's own directory of that name."""
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "__init__.py").write_text("raise AssertionError('not this one')")
  program = [sys.executable, "-m", "r3gan_jax.cli.train", "--config=configs/zoo/bigan.py:nope"]
  done = subprocess.run(
    program, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
  )
  assert done.returncode == 2 and "config 'zoo_bigan' has no variant 'nope'" in done.stderr
