"""Scores a run, or compares two sets of images:

    python -m r3gan_jax.cli.evaluate --workdir=runs/NAME
    python -m r3gan_jax.cli.evaluate --workdir=runs/NAME --metrics=fid,kid,precision_recall --num_samples=50000
    python -m r3gan_jax.cli.evaluate --real=A --fake=B --metrics=fid,kid,precision_recall

A run is scored against all the images that it trains on, by its own settings below config.run unless flags say
otherwise, so the numbers equal those that training logs. A and B are directories, zips or .npz files of images, each of
one size; an .npz has them as `images` or `arr_0`, uint8 [n, H, W, C]. For FID, A may have reference statistics instead:
an .npz with `mu` and `sigma`, as of pytorch-fid and EDM, computed with the same --network and --resize.

Each number goes to the run's metrics.jsonl, to the terminal and, with --json, to a file as soon as it is computed,
together with what it depends on. In metrics.jsonl, scores by another protocol than the run's first ones have names of
their own, such as "metrics/fid (num_samples=1000)". The same seed gives the same numbers.

    --save_statistics=FILE.npz  also writes the reference statistics of the real images; with --real, without --fake
    --metrics=report            all metrics that the data and the networks allow; a line names each that is left out
    --repeats=3                 scores 3 sets of samples, of --seed and the next ones; then prints the mean and the
                                standard deviation over them, such as "fid 2.31 +- 0.04"
    --metrics=classification_error
                                of the run's own networks on the data set's test images; no samples are drawn
    --metrics=pairs             of an image-to-image GAN: PSNR, SSIM and more, against the true images
                                (docs/image_to_image.md)
    --truncation=0.7            of less varied samples, as of cli.sample
    --quantisation=official     samples become uint8 in bfloat16 if G's last stage computes in it (never on CPUs), as in
                                the official code: 41 % of values are one level higher (ops/images.py)
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags, logging
from etils import epath

from r3gan_jax import comparison, factory, runs, scoring
from r3gan_jax.cli.shared.outputs import output_path
from r3gan_jax.cli.shared.processes import join_processes
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.comparison import Settings
from r3gan_jax.errors import UserError
from r3gan_jax.metrics.evaluation import METRICS, OF_NEIGHBOURS
from r3gan_jax.metrics.features import RESIZES
from r3gan_jax.metrics.image_sets import open_images, open_real
from r3gan_jax.metrics.reference import Reference, write_reference
from r3gan_jax.pretrained import FEATURE_NETWORKS
from r3gan_jax.reporting.results import mean_and_std
from r3gan_jax.reporting.series import is_score
from r3gan_jax.scoring import Scorer
from r3gan_jax.storage import as_path, failing_as, write_whole
from r3gan_jax.training.distributed import is_first_process
from r3gan_jax.training.logging import METRICS_FILE, append_line
from r3gan_jax.training.protocol import as_series, keep_protocol, protocol_differences

REPORT = "report"

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "With --workdir: its images seen, or 'best'; default: the newest.")
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples",
  None,
  "How many samples of a run to draw, by default config.run.metric_samples; or how many random images of --fake to "
  "score, by default all.",
  lower_bound=1,
)
_REAL = flags.DEFINE_string("real", None, "Real images: a directory, zip or .npz; for FID also statistics in an .npz.")
_FAKE = flags.DEFINE_string("fake", None, "The images to score: a directory, zip or .npz.")
_METRICS = flags.DEFINE_list(
  "metrics",
  None,
  f"A list of {', '.join(scoring.METRICS)}, or {REPORT!r} for all that are possible; default: config.run.metrics, or "
  "fid.",
)
_NETWORK = flags.DEFINE_enum(
  "network",
  None,
  FEATURE_NETWORKS,
  f"Default: the run's; else VGG16 for {', '.join(OF_NEIGHBOURS)}, Inception for the others.",
)
_RESIZE = flags.DEFINE_enum(
  "resize", None, RESIZES, "How images are resized for Inception; default: the run's, or tensorflow."
)
_QUANTISATION = flags.DEFINE_string(
  "quantisation", None, "With --workdir: how samples become uint8, 'float32' or 'official'; default: the run's."
)
_WEIGHTS = flags.DEFINE_string(
  "weights", None, "With --network: the file of its weights, in the form that docs/evaluation.md describes."
)
_DOWNLOAD = flags.DEFINE_bool("download", False, "Fetch published weights that are missing.")
_BATCH = flags.DEFINE_integer("batch", 64, "Images in one forward pass on each device.", lower_bound=1)
_SEED = flags.DEFINE_integer(
  "seed",
  0,
  "Of the samples, of --num_samples, of KID's subsets and of the parts of the Inception score.",
  lower_bound=0,
  upper_bound=2**32 - 1,
)
_REPEATS = flags.DEFINE_integer(
  "repeats", 1, "With --workdir: how many sets of samples to score, each with a seed of its own.", lower_bound=1
)
_TRUNCATION = flags.DEFINE_float(
  "truncation", 1.0, "With --workdir: as of cli.sample, from 1 to 0.", lower_bound=0.0, upper_bound=1.0
)
_JSON = flags.DEFINE_string("json", None, "Also write the numbers to this file.")
_SAVE_STATISTICS = flags.DEFINE_string(
  "save_statistics", None, "Also write the reference statistics of the real images to this .npz."
)

Entry = list[tuple[Settings, dict[str, float]]]
"""Settings and numbers of one feature network, for each seed."""


def main() -> None:
  join_processes()
  if _WEIGHTS.value and not _NETWORK.value:
    raise UserError("--weights needs --network: whose weights are they?")
  statistics_only = bool(_SAVE_STATISTICS.value and _REAL.value and not _FAKE.value)
  if bool(_WORKDIR.value) == bool(_REAL.value) or bool(_REAL.value) != bool(_FAKE.value or statistics_only):
    raise UserError("name either a --workdir, or --real and --fake")
  metrics = _METRICS.value or []
  if REPORT in metrics and len(metrics) > 1:
    raise UserError(f"--metrics={','.join(metrics)}: {REPORT} has all metrics, so name no others")
  for metric in metrics:
    if metric not in (*scoring.METRICS, REPORT):
      raise UserError(f"--metrics={metric} is unknown: choose from {', '.join(scoring.METRICS)}, or {REPORT}")
  statistics = _SAVE_STATISTICS.value and output_path("save_statistics", _SAVE_STATISTICS.value, (".npz",))[0]
  if _JSON.value:
    output_path("json", _JSON.value, (".json",))
  weights = Path(_WEIGHTS.value).expanduser() if _WEIGHTS.value else None
  scores = _of_run(_WORKDIR.value, weights, statistics) if _WORKDIR.value else _of_files(weights, statistics)
  shown: dict[tuple[str | int | float, ...], Entry] = {}
  for settings, numbers in scores:
    shown.setdefault(tuple(value for name, value in settings.items() if name != "seed"), []).append((settings, numbers))
    if not is_first_process():
      continue
    try:
      if _JSON.value:
        entries = [_as_json(entry) for entry in shown.values()]
        with failing_as(f"cannot write --json={_JSON.value}", _JSON.value):
          write_whole(as_path(_JSON.value), json.dumps(entries, indent=2) + "\n")
    finally:  # what is computed is shown, whatever becomes of the file
      for name, value in (settings | numbers).items():
        _show(name, format(value, ".6g") if isinstance(value, float) else value)
  if _REPEATS.value > 1 and is_first_process():
    _show("repeats", _REPEATS.value)
    for entry in shown.values():
      for name in filter(is_score, entry[0][1]):
        _show(name, mean_and_std([numbers[name] for _, numbers in entry]).replace("±", "+-"))


def _as_json(entry: Entry) -> dict[str, Any]:
  """Returns settings and numbers by name; of several seeds, the lists of the seeds and of the numbers."""
  settings, numbers = entry[0]
  if _REPEATS.value == 1:
    return settings | numbers
  seeds = {"seed": [settings["seed"] for settings, _ in entry]} if "seed" in settings else {}
  return settings | seeds | {name: [numbers[name] for _, numbers in entry] for name in numbers}


def _show(name: str, value: str | float) -> None:
  print(f"{name:40}{value}", flush=True)


def _of_run(
  workdir: str, weights: Path | None, statistics: epath.Path | None
) -> Iterator[tuple[Settings, dict[str, float]]]:
  """Scores a run; yields what `Scorer` does, after logging the numbers in metrics.jsonl."""
  trained = runs.open_run(workdir, _CHECKPOINT.value)
  source = factory.build_source(trained.config)

  run, path = trained.config.run, as_path(workdir)
  own = scoring.protocol(trained.config, trained.algorithm) if run.metrics else None
  report = _METRICS.value == [REPORT]
  num_samples = _NUM_SAMPLES.value or run.metric_samples
  scoring.seeds_of_samples(num_samples, _SEED.value + _REPEATS.value - 1)
  metrics = _METRICS.value
  if report:
    metrics = comparison.with_weights(scoring.report(trained.config, trained.algorithm, num_samples), _DOWNLOAD.value)
  chosen = {
    "metrics": metrics or list(run.metrics) or ["fid"],
    "metric_samples": num_samples,
    "feature_network": _NETWORK.value,
    "resize": _RESIZE.value,
    "quantisation": _QUANTISATION.value,
  }
  run.update({name: value for name, value in chosen.items() if value is not None})
  scorer = Scorer(
    trained.config,
    trained.algorithm,
    source,
    _SEED.value,
    weights,
    _DOWNLOAD.value,
    _BATCH.value,
    trained.title,
    _TRUNCATION.value,
    leave_out=report,
  )
  protocol_differences(path, scorer.protocol)  # a damaged record is noticed before anything is computed
  if statistics:
    _write_statistics(statistics, scorer.reference())
  for seed in range(_SEED.value, _SEED.value + _REPEATS.value):
    scorer = scorer if seed == _SEED.value else scorer.of_seed(seed)
    for settings, numbers in scorer(trained.params, trained.carry):
      if is_first_process():
        try:
          if scorer.protocol:
            keep_protocol(path, own or scorer.protocol)
          differences = protocol_differences(path, scorer.protocol)
          series = as_series(numbers, {name: pair for name, pair in differences.items() if name in settings})
          with failing_as(f"cannot write {path / METRICS_FILE}", path):
            append_line(path / METRICS_FILE, trained.images_seen, series)
        except UserError as error:  # as for a run of somebody else's
          logging.error("the scores are shown but not logged: %s", error)
      yield {"images_seen": trained.images_seen, **settings}, numbers


def _of_files(weights: Path | None, statistics: epath.Path | None) -> Iterator[tuple[Settings, dict[str, float]]]:
  """Scores --fake against --real; yields what numbers depend on, and the numbers."""
  report = _METRICS.value == [REPORT]
  metrics = comparison.with_weights(METRICS, _DOWNLOAD.value) if report else _METRICS.value or ["fid"]
  if _REPEATS.value > 1:
    raise UserError(
      "--repeats draws sets of samples, which needs a --workdir: parts of --fake would have fewer images, and another "
      "FID. Score several sets of files one by one"
    )
  for metric in metrics:
    if metric not in METRICS:
      raise UserError(f"--metrics={metric} is about a run, not about images: name its --workdir")
  if _QUANTISATION.value:
    raise UserError("--quantisation is about the samples of a --workdir: leave it out")
  if _TRUNCATION.value != 1:
    raise UserError("--truncation is about the samples of a --workdir: leave it out")
  if _NUM_SAMPLES.value and not _FAKE.value:
    raise UserError("--num_samples is about the samples of a --workdir, or the images of --fake: leave it out")
  described: Settings = {"real": _REAL.value or "", "fake": _FAKE.value or ""}
  real = open_real(_REAL.value or "", metrics)
  fake = open_images("fake", _FAKE.value) if _FAKE.value else None
  if _NUM_SAMPLES.value and fake:
    fake = fake.drawn(_NUM_SAMPLES.value, _SEED.value)
    described["num_samples"] = _NUM_SAMPLES.value
  evaluations = comparison.build_evaluations(
    metrics,
    real,
    _NETWORK.value or "",
    _RESIZE.value or "tensorflow",
    weights,
    download=_DOWNLOAD.value,
    batch_per_device=_BATCH.value,
  )
  if fake:
    if report:
      evaluations = comparison.possible(evaluations, fake.size, fake.shape, with_classes=False)
    for _, evaluation in evaluations:
      evaluation.check(fake.size, fake.shape, with_classes=False)
  if statistics:
    _write_statistics(statistics, comparison.reference(evaluations))
  if fake:
    for settings, evaluation in evaluations:
      yield described | settings | {"seed": _SEED.value}, evaluation(fake, _SEED.value)


def _write_statistics(path: epath.Path, reference: Reference) -> None:
  if is_first_process():
    write_reference(path, reference)
    _show("statistics", str(path))


if __name__ == "__main__":
  run(main)
