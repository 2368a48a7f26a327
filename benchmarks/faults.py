"""Disturbs a training run many times, and compares its end with that of an undisturbed run:

    python -m benchmarks.faults --kills 50

It is killed by SIGKILL, SIGTERM, SIGHUP or Ctrl-C at random moments, while it starts, trains, draws and saves, which it
does every ten iterations. Before some kills a second process is started on the same work directory, the disk is full
for a while (a small file system, which only root can mount), or no file may exceed a quota; before some starts the last
line of the log is torn. Nothing may be lost: it must resume from the newest complete checkpoint every time, and in the
end every array of the state must equal, bit for bit, that of the undisturbed run, so that no image was skipped or
repeated; the log must be whole, and nothing may be left behind.
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import measure
from r3gan_jax import factory
from r3gan_jax.errors import INTERRUPTED
from r3gan_jax.training.checkpoint import DIRECTORY, Checkpoints
from r3gan_jax.training.logging import METRICS_FILE, read_metrics
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.state import abstract_state
from r3gan_jax.training.workdir import LOCK_FILE, read_config

ROOT = Path(__file__).parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MISHAPS = ("none", "second process", "full disk", "quota", "torn log")
TORN = (b'{"images_seen": 12', b"12\n", b"\xff\xfe\n", b'{"foo": 1}\n', b"[]")
LOG_EVERY_IMAGES = 800


def main() -> None:
  parser = measure.parser(__doc__ or "")
  parser.add_argument("--kills", type=int, default=50, help="number of kills (%(default)s)")
  parser.add_argument("--images", type=int, default=60_000, help="length of the run, in images (%(default)s)")
  parser.add_argument("--patience", type=float, default=4, help="most seconds of training before a kill (%(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="seed of signals, mishaps and moments (%(default)s)")
  arguments = parser.parse_args()
  moments = random.Random(arguments.seed)
  counted: Counter[str] = Counter()
  with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as disk:
    killed, alone, log = disk / "killed", Path(name) / "alone", Path(name) / "log"
    # With a compilation cache, so that most kills hit training.
    compiled = {"JAX_COMPILATION_CACHE_DIR": f"{name}/compiled", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(workdir: Path, log: Path = log) -> subprocess.Popen[str]:
      command = [
        sys.executable,
        "main.py",
        "--config=configs/stacked_digits.py:smoke",
        f"--workdir={workdir}",
        f"--config.run.total_images={arguments.images}",
        "--config.run.snapshot_every_images=80",
        f"--config.run.log_every_images={LOG_EVERY_IMAGES}",
      ]
      return subprocess.Popen(command, cwd=ROOT, env=os.environ | compiled, stderr=log.open("w"), text=True)

    def strike(process: subprocess.Popen[str], mishap: str) -> None:
      """Waits for a random time, in which the mishap happens."""
      if mishap == "second process":
        second = start(killed, Path(name) / "second")
        text = f"status {second.wait()}: {(Path(name) / 'second').read_text()}"
        if process.poll() is None and not re.search(r"status 2: (.|\n)*error: .* is in use by process", text):
          sys.exit(f"the second process was not refused: {text}")
      elif mishap == "full disk":
        fill(disk / "ballast")
      elif mishap == "quota":
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
      time.sleep(moments.uniform(0, arguments.patience))
      (disk / "ballast").unlink(missing_ok=True)

    if start(alone).wait():
      sys.exit(log.read_text())
    partly_written = kills = 0
    while kills < arguments.kills:
      newest = max(checkpoints(killed), default=None)
      mishap = moments.choice(MISHAPS)
      if mishap == "torn log" and killed.exists():
        with (killed / METRICS_FILE).open("ab") as file:
          file.write(moments.choice(TORN))
      process = start(killed)
      if mishap in MISHAPS[1:4] or moments.random() < 0.75:  # the others are killed while they start
        while process.poll() is None and "images/s" not in log.read_text():
          time.sleep(0.05)
      strike(process, mishap)
      if process.poll() is not None:
        sys.exit(f"the run ended after {kills} kills: raise --images\n{log.read_text()}")
      chosen = moments.choice(SIGNALS)
      process.send_signal(chosen)
      status = process.wait()
      kills += 1
      counted.update((f"{chosen.name}, status {status}", mishap))
      expected = {signal.SIGINT: (INTERRUPTED, 130, -signal.SIGINT)}.get(chosen, (INTERRUPTED, -chosen))
      text = log.read_text()
      if status not in expected or (status > 0 and "Traceback" in text):
        sys.exit(f"status {status} after {chosen.name}, {mishap}:\n{text}")
      resumed = re.search(r"resumed from \S+ at ([\d,]+) images", text)
      if resumed and int(resumed[1].replace(",", "")) != newest:
        sys.exit(f"resumed at {resumed[1]} images, but {newest} were saved:\n{text}")
      partly_written += len(list((killed / DIRECTORY).glob("*tmp*")))
      print(f"{kills}: {mishap}, {chosen.name}, at {max(checkpoints(killed), default=0):,} images", flush=True)
    if start(killed).wait():
      sys.exit(log.read_text())
    different = [name for name, value in state(killed).items() if not np.array_equal(value, state(alone)[name])]
    left = [str(path) for path in killed.rglob("*") if "tmp" in path.name or path.name == LOCK_FILE]
    logged = [list(read_metrics(workdir)["generator/loss"][0]) for workdir in (killed, alone)]
  print(f"{dict(counted)}; {partly_written} interrupted saves")
  print(f"arrays that differ from those of the undisturbed run: {different or 'none'}")
  print(f"lines of the log that are missing: {sorted(set(logged[1]) - set(logged[0])) or 'none'}")
  print(f"left behind: {left or 'nothing'}")
  sys.exit(bool(different or left or set(logged[1]) - set(logged[0])))


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
  """Mounts a file system of 100 MB, which only root can; without it, a directory whose disk is never full."""
  directory.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(directory)]
  mounted = not subprocess.run(mount, capture_output=True).returncode
  if not mounted:
    print("without root the disk is never full")
  try:
    yield directory
  finally:
    if mounted:
      subprocess.run(["umount", str(directory)], check=True)


def fill(ballast: Path) -> None:
  """Fills the disk if it is the small one."""
  if shutil.disk_usage(ballast.parent).total < 2**28:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
      while file.write(b"x" * 2**16):
        pass


def checkpoints(workdir: Path) -> list[int]:
  """Returns the images seen of all complete checkpoints."""
  return [int(path.name) for path in (workdir / DIRECTORY).glob("*") if path.name.isdecimal()]


def state(workdir: Path) -> dict[str, Any]:
  """Returns the arrays of the newest checkpoint, by name."""
  algorithm = factory.build_algorithm(ConfigDict(read_config(workdir)))
  saved = Checkpoints(workdir / DIRECTORY)
  restored = saved.restore_latest(abstract_state(algorithm, make_mesh()))
  saved.close()
  assert restored
  arrays = jax.tree.leaves_with_path(restored.replace(rng=jax.random.key_data(restored.rng)))  # type: ignore[attr-defined]
  return {jax.tree_util.keystr(path): np.asarray(array) for path, array in arrays}


if __name__ == "__main__":
  main()
