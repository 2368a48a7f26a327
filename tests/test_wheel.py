"""The wheel, without the repository: sdist and wheel are built, installed elsewhere, and used as a user does."""

import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs", "on_gpu", "tests")
TINY = ("--config.gan.widths=(8,8)", "--config.gan.cardinalities=(1,1)", "--config.batch_size=8")
SHORT = ("--config.run.total_images=16", "--config.run.metrics=()", "--config.run.best_metric=")
DRAW = """
import numpy as np
import r3gan_jax

gan = r3gan_jax.load("runs/stacked_digits")
np.save("drawn.npy", gan.sample(seeds=range(8)))
print(r3gan_jax.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Builds the sdist, and the wheel from it, so that it holds all that the wheel needs."""
  directory = tmp_path_factory.mktemp("wheel")
  source = directory / "source"  # a copy: the build would take files of an older one, and leaves files behind
  shutil.copytree(ROOT, source, ignore=NOT_SOURCES)
  build = [sys.executable, "-m", "build", "--no-isolation", f"--outdir={directory}", str(source)]
  done = subprocess.run(build, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  assert done.returncode == 0, done.stdout
  assert len(list(directory.glob("*.tar.gz"))) == 1
  (wheel,) = directory.glob("*.whl")
  return wheel


def test_the_wheel_has_the_package_and_its_recipes_and_nothing_else(wheel):
  def files(top, prefix):
    found = (path for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {prefix + path.relative_to(ROOT).as_posix() for path in found}

  with zipfile.ZipFile(wheel) as archive:
    names = {name for name in archive.namelist() if ".dist-info/" not in name}
  assert names == files("r3gan_jax", "") | files("configs", "r3gan_jax/share/")


def test_a_user_without_the_repository(wheel, environment, tmp_path):
  """Opens a recipe of their own, trains one that comes along, and draws the same by command and in Python."""
  installed, here = tmp_path / "installed", tmp_path / "here"
  pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", f"--target={installed}", wheel]
  subprocess.run(pip, check=True)
  own = environment | {"PYTHONPATH": str(installed)}  # other packages are those of the interpreter
  own.pop("GLIBC_TUNABLES", None)  # so that training restarts its process
  here.mkdir()
  (here / "configs").mkdir()  # the user's, with other things in it
  (here / "configs" / "common.py").write_text("raise AssertionError('not this one')")

  def run(*command, status=0):
    done = subprocess.run(command, cwd=here, env=own, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr

  def r3gan(*arguments, status=0):
    return run(str(installed / "bin" / "r3gan"), *arguments, status=status)

  listed = r3gan("--help")
  assert all(f"\n  {name} " in listed for name in ("train", "sample", "evaluate", "recipes"))
  (here / "mine.py").write_text(r3gan("recipes", "--show=configs/stacked_digits.py").replace("= 16\n", "= -16\n"))
  assert "config.batch_size = -16 must be positive" in r3gan("train", "--config=mine.py", status=2)
  program = [str(installed / "bin" / "r3gan"), "train", "--config=configs/stacked_digits.py", *TINY, *SHORT]
  with subprocess.Popen(program, cwd=here, env=own, stderr=subprocess.PIPE, text=True) as training:
    restarted = sys.platform != "linux"
    while not restarted and training.poll() is None:  # memory.py: the same process, with another allocator
      restarted = b"GLIBC_TUNABLES=glibc" in Path(f"/proc/{training.pid}/environ").read_bytes()
      time.sleep(0.05)
    said = training.communicate()[1]
  assert restarted and training.returncode == 0, said
  r3gan("sample", "--workdir=runs/stacked_digits", "--seeds=0-7", "--out=drawn.npz")
  assert run(sys.executable, "-c", DRAW).strip() == str(installed / "r3gan_jax" / "__init__.py")
  with np.load(here / "drawn.npz") as drawn:
    np.testing.assert_array_equal(np.load(here / "drawn.npy"), drawn["images"])
