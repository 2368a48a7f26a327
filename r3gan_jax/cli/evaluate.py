"""Scores a run, or compares two sets of images:

    python -m r3gan_jax.cli.evaluate --workdir=runs/NAME
    python -m r3gan_jax.cli.evaluate --workdir=runs/NAME --metrics=fid,kid,precision_recall --num_samples=50000
    python -m r3gan_jax.cli.evaluate --real=A --fake=B --metrics=fid,kid,precision_recall

A run is scored against all the images that it trains on, by its own settings below config.run unless flags say
otherwise, so the numbers equal those that training logs. A and B are directories or zips of images, each of one size.

The numbers go to the terminal, to the run's metrics.jsonl and, with --json, to a file, together with the feature
network, resize and sizes. In metrics.jsonl, scores by another protocol than the run's first ones have names of their
own, such as "metrics/fid (num_samples=1000)". The same seed gives the same numbers.

    --quantisation=official     samples become uint8 in bfloat16 if G's last stage computes in it (never on CPUs), as in
                                the official code: 41 % of values are one level higher (ops/images.py)
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags, logging

from r3gan_jax import factory, runs, scoring
from r3gan_jax.cli.shared.processes import join_processes
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import Decoder, to_array
from r3gan_jax.data.survey import describe, survey
from r3gan_jax.errors import UserError
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import RESIZES
from r3gan_jax.scoring import Scorer, Scores
from r3gan_jax.storage import absolute, as_path, failing_as, write_whole
from r3gan_jax.training.distributed import is_first_process
from r3gan_jax.training.logging import METRICS_FILE, append_line
from r3gan_jax.training.protocol import as_series, keep_protocol, protocol_differences

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "With --workdir: its images seen, or 'best'; default: the newest.")
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples", None, "With --workdir: how many samples to draw; default: config.run.metric_samples.", lower_bound=1
)
_REAL = flags.DEFINE_string("real", None, "A directory or zip of real images.")
_FAKE = flags.DEFINE_string("fake", None, "A directory or zip of images to score.")
_METRICS = flags.DEFINE_list(
  "metrics", None, f"A list of {', '.join(scoring.METRICS)}; default: config.run.metrics, or fid."
)
_NETWORK = flags.DEFINE_enum(
  "network",
  None,
  scoring.FEATURE_NETWORKS,
  "Default: the run's; else VGG16 for precision_recall, Inception for the others.",
)
_RESIZE = flags.DEFINE_enum(
  "resize", None, RESIZES, "How images are resized for Inception; default: the run's, or tensorflow."
)
_QUANTISATION = flags.DEFINE_string(
  "quantisation", None, "With --workdir: how samples become uint8, 'float32' or 'official'; default: the run's."
)
_WEIGHTS = flags.DEFINE_string("weights", None, "With --network: the file of its weights.")
_DOWNLOAD = flags.DEFINE_bool("download", False, "Fetch published weights that are missing.")
_BATCH = flags.DEFINE_integer("batch", 64, "Images in one forward pass on each device.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples, and of KID's subsets.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "Also write the numbers to this file.")


def main() -> None:
  join_processes()
  if _WEIGHTS.value and not _NETWORK.value:
    raise UserError("--weights needs --network: whose weights are they?")
  if not bool(_WORKDIR.value) == (not _REAL.value) == (not _FAKE.value):
    raise UserError("name either a --workdir, or --real and --fake")
  for metric in _METRICS.value or ():
    if metric not in scoring.METRICS:
      raise UserError(f"--metrics={metric} is unknown: choose from {', '.join(scoring.METRICS)}")
  weights = Path(_WEIGHTS.value).expanduser() if _WEIGHTS.value else None
  scores = _of_run(_WORKDIR.value, weights) if _WORKDIR.value else _of_files(weights)
  if not is_first_process():
    return
  for part in scores:
    for name, value in part.items():
      print(f"{name:28}{value if isinstance(value, str) else format(value, '.6g')}")
  if _JSON.value:
    with failing_as(f"cannot write --json={_JSON.value}", _JSON.value):
      write_whole(as_path(_JSON.value), json.dumps(scores, indent=2) + "\n")


def _of_run(workdir: str, weights: Path | None) -> list[Scores]:
  """Scores a run, and logs the numbers in its metrics.jsonl."""
  trained = runs.open_run(workdir, _CHECKPOINT.value)
  source = factory.build_source(trained.config)

  run, path = trained.config.run, as_path(workdir)
  own = scoring.protocol(trained.config, trained.algorithm) if run.metrics else None
  chosen = {
    "metrics": _METRICS.value or list(run.metrics) or ["fid"],
    "metric_samples": _NUM_SAMPLES.value,
    "feature_network": _NETWORK.value,
    "resize": _RESIZE.value,
    "quantisation": _QUANTISATION.value,
  }
  run.update({name: value for name, value in chosen.items() if value is not None})
  scorer = Scorer(trained.config, trained.algorithm, source, _SEED.value, weights, _DOWNLOAD.value, _BATCH.value)
  scores = scorer(trained.params, trained.carry)
  if is_first_process():
    keep_protocol(path, own or scorer.protocol)
    series = as_series(scoring.numbers(scores), protocol_differences(path, scorer.protocol))
    append_line(path / METRICS_FILE, trained.images_seen, series)
    print(f"{'images_seen':28}{trained.images_seen}")
  return scores


def _of_files(weights: Path | None) -> list[Scores]:
  """Scores --fake against --real."""
  metrics = _METRICS.value or ["fid"]
  if "modes" in metrics:
    raise UserError("--metrics=modes needs the --workdir of a run on stacked digits")
  if _QUANTISATION.value or _NUM_SAMPLES.value:
    raise UserError("--quantisation and --num_samples are about the samples of a --workdir: leave them out")
  real, fake = image_set("real", _REAL.value or ""), image_set("fake", _FAKE.value or "")
  evaluations = scoring.build_evaluations(
    metrics,
    real,
    _NETWORK.value or "",
    _RESIZE.value or "tensorflow",
    weights,
    download=_DOWNLOAD.value,
    batch_per_device=_BATCH.value,
    seed=_SEED.value,
  )
  return [{**described, **evaluation(fake)} for described, evaluation in evaluations]


def image_set(name: str, path: str) -> ImageSet:
  """All images under `path`, as RGB. Known again by their names and contents."""
  files = ImageFiles(path)
  decoder = Decoder(channels=3)
  found = survey(files)
  if found.corrupt:
    raise found.corrupt[0]
  logging.info("%s: %s", name, describe(files, found, "classes are not looked at", decoder.background))
  size = found.headers[0].size
  threads = ThreadPoolExecutor(thread_name_prefix=name)

  def read(index: int) -> np.ndarray:
    image = decoder(files.read(index), files.title(index))
    if image.size != size:
      raise UserError(
        f"{files.title(index)} is {'x'.join(map(str, image.size))}, but the first one is {'x'.join(map(str, size))}: "
        "bring all to one size"
      )
    return to_array(image)

  def images(indices: np.ndarray) -> np.ndarray:
    return np.stack(list(threads.map(read, indices.tolist())))

  described = [str(absolute(files.path)), *files.names, *files.fingerprints()]
  return ImageSet(name, len(files), images, hashlib.sha256("\n".join(described).encode()).hexdigest())


if __name__ == "__main__":
  run(main)
