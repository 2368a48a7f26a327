"""Reports how far a long command is, on a terminal and in a log file alike."""

import time
from collections.abc import Iterable, Iterator

import numpy as np
from absl import logging
from tqdm import tqdm

INTERVAL_SECONDS = 10.0


def with_progress(batches: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
  """Passes on batches of images, `total` in all; logs every 10 s how many are done, their speed and the time left."""
  done = last_done = 0
  last = time.monotonic()
  for batch in batches:
    yield batch
    done += len(batch)
    seconds = time.monotonic() - last
    if seconds >= INTERVAL_SECONDS:
      rate = (done - last_done) / seconds
      last, last_done = last + seconds, done
      left = tqdm.format_interval((total - done) / rate)
      logging.info("%s of %s images | %.0f images/s | ETA %s", f"{done:,}", f"{total:,}", rate, left)
