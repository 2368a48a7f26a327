"""Scores a run, or compares two sets of images:

    python -m r3gan_jax.cli.evaluate --workdir=runs/NAME --metrics=fid,kid,precision_recall
    python -m r3gan_jax.cli.evaluate --real=A --fake=B --metrics=fid,kid,precision_recall

A and B are directories or zips of images, those of each of one size. A run is scored on all the images
that it trains on; on stacked digits `modes` counts the modes, of the real images too. The numbers go to the terminal,
to the run's metrics.jsonl and, with --json, to a file, with the sizes, network and resize that they belong to, and of a
run the type in which its samples became uint8. The same seed, the same numbers.

    --quantisation=official     in bfloat16 where G's last stage computes in it (not on CPUs), as in the official code,
                                so that 41 % of values are one level higher (ops/images.py); elsewhere, and by default,
                                in float32
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags, logging

from r3gan_jax import factory, runs
from r3gan_jax.cli.shared.processes import join_processes
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import Decoder, to_array
from r3gan_jax.data.survey import describe, survey
from r3gan_jax.errors import UserError
from r3gan_jax.metrics.evaluation import Evaluation
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import RESIZES
from r3gan_jax.storage import absolute, as_path, failing_as
from r3gan_jax.training.distributed import is_first_process
from r3gan_jax.training.logging import METRICS_FILE, append_line
from r3gan_jax.training.mesh import make_mesh

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "With --workdir: its images seen, or 'best'; default: the newest.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 50_000, "With --workdir: images that the run draws.", lower_bound=1)
_REAL = flags.DEFINE_string("real", None, "A directory or zip of real images.")
_FAKE = flags.DEFINE_string("fake", None, "A directory or zip of images to score.")
_METRICS = flags.DEFINE_list("metrics", ["fid"], f"Of {', '.join(runs.METRICS)}.")
_NETWORK = flags.DEFINE_enum(
  "network", "", ("", *runs.FEATURE_NETWORKS), "Default: VGG16 for precision_recall, Inception for the others."
)
_RESIZE = flags.DEFINE_enum("resize", "tensorflow", RESIZES, "How images come to Inception's size.")
_QUANTISATION = flags.DEFINE_string(
  "quantisation", "", "With --workdir: how samples become uint8: 'float32', 'official'; default: the run's own setting."
)
_WEIGHTS = flags.DEFINE_string("weights", None, "With --network: its file; default: where the error says.")
_DOWNLOAD = flags.DEFINE_bool("download", False, "Fetch published weights that are not at hand.")
_BATCH = flags.DEFINE_integer("batch", 64, "Images a device handles at a time.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples, and of the subsets of KID.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "Also write the numbers here.")


def main() -> None:
  join_processes()
  if _WEIGHTS.value and not _NETWORK.value:
    raise UserError("--weights needs --network: whose weights are they?")
  if not bool(_WORKDIR.value) == (not _REAL.value) == (not _FAKE.value):
    raise UserError("name either a --workdir, or --real and --fake")
  if _QUANTISATION.value and not _WORKDIR.value:
    raise UserError("--quantisation is of the samples of a --workdir: images in files are uint8 already")
  for metric in _METRICS.value:
    if metric not in runs.METRICS:
      raise UserError(f"--metrics={metric} is unknown: choose from {', '.join(runs.METRICS)}")
  results: list[dict[str, str | float]] = []
  protocol: dict[str, str] = {}
  trained = None
  if _WORKDIR.value:
    trained = runs.open_run(_WORKDIR.value, _CHECKPOINT.value)
    source = factory.build_source(trained.config)
    trained.config.run.quantisation = _QUANTISATION.value or trained.config.run.quantisation
    quantised_in = factory.quantised_in(trained.config, trained.algorithm)
    protocol["quantised_in"] = quantised_in.name
    real = runs.real_images(trained.config, source, _NUM_SAMPLES.value)
    draw = runs.fake_images(trained.algorithm, source, _NUM_SAMPLES.value, _SEED.value, quantised_in)
    fake = draw(trained.params, trained.carry)
    if "modes" in _METRICS.value:
      results.append(protocol | runs.build_mode_coverage(trained.config, source, _NUM_SAMPLES.value)(fake))
  else:
    real, fake = image_set("real", _REAL.value or ""), image_set("fake", _FAKE.value or "")
    if "modes" in _METRICS.value:
      raise UserError("--metrics=modes needs the --workdir of a run on stacked digits")
  compared = [metric for metric in _METRICS.value if metric != "modes"]
  for name, metrics in runs.networks_of_metrics(compared, _NETWORK.value).items():
    weights = Path(_WEIGHTS.value).expanduser() if _WEIGHTS.value else None
    network = runs.build_feature_network(name, _RESIZE.value, weights, _DOWNLOAD.value)
    evaluation = Evaluation(metrics, network, make_mesh(), real, runs.statistics_cache(), _BATCH.value, _SEED.value)
    results.append({"network": network.name, "resize": network.resize} | protocol | evaluation(fake))
  if not is_first_process():
    return
  if trained:
    for result in results:
      named = {f"metrics/{key}": value for key, value in result.items()} | {"metrics/seed": float(_SEED.value)}
      append_line(as_path(_WORKDIR.value) / METRICS_FILE, trained.images_seen, named)
    print(f"{'images_seen':28}{trained.images_seen}")
  for result in results:
    for key, value in result.items():
      print(f"{key:28}{value if isinstance(value, str) else format(value, '.6g')}")
  if _JSON.value:
    with failing_as(f"cannot write --json={_JSON.value}", _JSON.value):
      as_path(_JSON.value).write_text(json.dumps(results, indent=2) + "\n")


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
