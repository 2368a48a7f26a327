"""Kills and restarts a training run many times, and compares its end with that of an uninterrupted run:

    python -m benchmarks.faults --kills 50

SIGKILL or SIGTERM comes at random moments, while it starts, trains, draws and saves, which it does every ten
iterations. Nothing may be lost: it must resume from the newest complete checkpoint every time, and in the end every
array of the state must equal, bit for bit, that of the uninterrupted run, so that no image was skipped or repeated.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import measure
from r3gan_jax import factory
from r3gan_jax.errors import INTERRUPTED
from r3gan_jax.training.checkpoint import DIRECTORY, Checkpoints
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.state import abstract_state
from r3gan_jax.training.workdir import read_config

ROOT = Path(__file__).parent.parent


def main() -> None:
  parser = measure.parser(__doc__ or "")
  parser.add_argument("--kills", type=int, default=50, help="number of kills (%(default)s)")
  parser.add_argument("--images", type=int, default=60_000, help="length of the run, in images (%(default)s)")
  parser.add_argument("--patience", type=float, default=4, help="most seconds of training before a kill (%(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="seed of signals and moments (%(default)s)")
  arguments = parser.parse_args()
  moments = random.Random(arguments.seed)
  signals: Counter[str] = Counter()
  with tempfile.TemporaryDirectory() as name:
    killed, alone, log = Path(name) / "killed", Path(name) / "alone", Path(name) / "log"
    # With a compilation cache, so that most kills hit training.
    compiled = {"JAX_COMPILATION_CACHE_DIR": f"{name}/compiled", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(workdir: Path) -> subprocess.Popen[str]:
      settings = (f"--config.run.total_images={arguments.images}", "--config.run.snapshot_every_images=80")
      command = [
        sys.executable,
        "main.py",
        "--config=configs/stacked_digits.py:smoke",
        f"--workdir={workdir}",
        *settings,
      ]
      return subprocess.Popen(command, cwd=ROOT, env=os.environ | compiled, stderr=log.open("w"), text=True)

    if start(alone).wait():
      sys.exit(log.read_text())
    partly_written = 0
    while (kills := signals.total()) < arguments.kills:
      newest = max(checkpoints(killed), default=None)
      process = start(killed)
      if moments.random() < 0.75:  # the others are killed while they start
        while process.poll() is None and "images/s" not in log.read_text():
          time.sleep(0.05)
      time.sleep(moments.uniform(0, arguments.patience))
      if process.poll() is not None:
        sys.exit(f"the run ended after {kills} kills: raise --images\n{log.read_text()}")
      chosen = moments.choice([signal.SIGKILL, signal.SIGTERM])
      process.send_signal(chosen)
      status = process.wait()
      signals[f"{chosen.name}, status {status}"] += 1
      if status not in (INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM):
        sys.exit(f"status {status} after {chosen.name}:\n{log.read_text()}")
      resumed = re.search(r"resumed from \S+ at ([\d,]+) images", log.read_text())
      if resumed and int(resumed[1].replace(",", "")) != newest:
        sys.exit(f"resumed at {resumed[1]} images, but {newest} were saved:\n{log.read_text()}")
      partly_written += len(list((killed / DIRECTORY).glob("*tmp*")))
      print(f"{kills + 1}: {chosen.name}, at {max(checkpoints(killed), default=0):,} images", flush=True)
    if start(killed).wait():
      sys.exit(log.read_text())
    different = [name for name, value in state(killed).items() if not np.array_equal(value, state(alone)[name])]
  print(f"{dict(signals)}; {partly_written} interrupted saves")
  print(f"arrays that differ from those of the uninterrupted run: {different or 'none'}")
  sys.exit(bool(different))


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
