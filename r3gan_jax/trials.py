"""The runs of a comparison (configs/comparisons/): each trains one entry with one seed, and leaves a result."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from r3gan_jax import factory, runs, scoring
from r3gan_jax.algorithms.base import Algorithm
from r3gan_jax.data.source import Source
from r3gan_jax.errors import UserError
from r3gan_jax.metrics.evaluation import OF_CLASSES
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.planning.plan import multiply_adds_per_image
from r3gan_jax.reporting.results import BOUNDS, Result, read_json, result_path
from r3gan_jax.sampling import Sampler, image_grid, save_png
from r3gan_jax.scoring import Scorer
from r3gan_jax.settings import counts_images
from r3gan_jax.sources import has_test_images, labelled
from r3gan_jax.storage import failing_as, write_whole
from r3gan_jax.training.logging import read_metrics
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.progress import Diverged
from r3gan_jax.training.state import averaged, init_state
from r3gan_jax.training.workdir import changed_settings

EVALUATIONS = 10
"""How often a run with a budget is scored, evenly over its images."""
SHOWN = 10
"""How many samples of a run are kept as a picture."""


def entry(config: ConfigDict, group: str, control: str = "", given: str = "") -> dict[str, object]:
  """Returns an entry.

  Args:
    config: what is trained. A comparison with a budget scales its length, and with it what `config.gan` counts in
      images.
    group: what is alike; differences count within a group.
    control: the entry that lacks only the idea of this one; "" if there is none.
    given: what it gets beyond the common budget, and where the protocol is unfair to it; shown below the table.
  """
  return {"config": config, "group": group, "control": control, "given": given}


def default_comparison(name: str, title: str, entries: Mapping[str, dict[str, object]]) -> ConfigDict:
  """Returns a comparison of entries by name, in the order of the table, locked."""
  comparison = ConfigDict(
    {
      "name": name,  # of its directories, for runs and for results
      "title": title,  # of the page of results
      # Of each run, forward and backward passes of all networks; 0: each entry's own config.run.total_images
      "multiply_adds": 0.0,
      # At the end of each run, of `samples` samples; those of classes only where an entry is conditional. The scores
      # during a run are those of its config.run.
      "metrics": ("fid", "precision_recall"),
      "samples": 10_000,
      "entries": dict(entries),
      "order": tuple(entries),
    },
    type_safe=False,  # a budget may be given as 1e12 or as an int
    allow_dotted_keys=True,  # gamma_0.5
  )
  return comparison.lock()


@dataclass(frozen=True)
class Trial:
  """One run of a comparison: its entry, its seed, and what its learning rates are multiplied by."""

  comparison: ConfigDict
  entry: str
  seed: int
  rate: float

  @property
  def name(self) -> str:
    """The name of the run below that of the entry."""
    return f"seed_{self.seed}" + (f"_rate_{self.rate:g}" if self.rate != 1 else "")

  @property
  def config(self) -> ConfigDict:
    """The configuration of the run, of the recipe's own length."""
    config = self.comparison.entries[self.entry].config.copy_and_resolve_references()
    config.seed = self.seed
    chosen = asdict(factory.chosen_settings(config))  # with rates as floats
    config.gan.update({name: times(chosen[name], self.rate) for name in chosen if name.endswith("learning_rate")})
    return config

  @property
  def settings(self) -> dict[str, Any]:
    """The settings of what is trained: all but those of `run`."""
    return {name: value for name, value in factory.checked(self.config.to_dict()).items() if name != "run"}

  def check(self) -> None:
    """Raises a UserError if the run cannot be made as configured; computes nothing."""
    try:
      # Neither takes a device.
      algorithm = factory.build_experiment(self.config, 1, "cpu").algorithm
      scoring.protocol(_at_the_end(self.comparison, self.config, algorithm), algorithm)
    except UserError as error:
      raise UserError(f"{self.entry}: {error}") from None

  def is_finished(self, results: epath.Path) -> bool:
    """Returns whether the run has a result.

    Raises:
      UserError: it was made with other settings, for another budget or by another protocol.
    """
    path = result_path(results, self.entry, self.name)
    if not path.exists():
      return False
    kept = Result.read(path)
    config = self.config
    algorithm = factory.build_algorithm(config, "cpu")
    protocol = scoring.protocol(_at_the_end(self.comparison, config, algorithm), algorithm)
    differences = {f"config.{name}": pair for name, pair in changed_settings(kept.settings, self.settings).items()}
    differences |= {
      name: (kept.protocol[name], value) for name, value in protocol.items() if kept.protocol.get(name, value) != value
    }
    if kept.multiply_adds != self.comparison.multiply_adds:
      differences["comparison.multiply_adds"] = kept.multiply_adds, self.comparison.multiply_adds
    if not kept.multiply_adds and kept.images != config.run.total_images:
      differences["config.run.total_images"] = kept.images, config.run.total_images
    for name, (before, now) in differences.items():
      raise UserError(
        f"{path} was made with {name} = {before!r}, but now it is {now!r}: keep the setting, choose another --results, "
        "or delete the file and its work directory"
      )
    return True


def chosen_trials(
  comparison: ConfigDict, only: Iterable[str], seeds: Iterable[int], rates: Sequence[float]
) -> list[Trial]:
  """Returns a trial for each seed, entry and rate, in this order, so that all entries have one before any has two."""
  return [Trial(comparison, entry, seed, rate) for seed in seeds for entry in only for rate in rates]


def train(trial: Trial, out: epath.Path, results: epath.Path) -> None:
  """Trains a run in OUT/ENTRY/RUN, or continues it, scores it, and writes its result.

  Raises:
    UserError, Interrupted: see `runs.train_run`. A run that diverges has a result, too.
  """
  config, workdir = trial.config, out / trial.entry / trial.name
  experiment = factory.build_experiment(config, jax.device_count())
  scored = _at_the_end(trial.comparison, config, experiment.algorithm)
  source = factory.build_source(scored)  # now, as its errors are the likeliest
  each = multiply_adds_per_image(experiment)
  if trial.comparison.multiply_adds:
    config = of_length(config, round(trial.comparison.multiply_adds / each))
  logging.info(
    "%s, %s: %s images of %.4g million multiply-adds", trial.entry, trial.name, config.run.total_images, each / 1e6
  )
  diverged_at = None
  try:
    runs.train_run(config, workdir)
  except Diverged as error:
    logging.warning("%s", error)
    diverged_at = error.images_seen

  scores: dict[str, float] = {}
  if diverged_at is None:
    trained = runs.open_run(workdir)
    if trained.images_seen >= config.run.total_images + experiment.images_per_iteration:
      raise UserError(
        f"{workdir} was trained on more images than config.run.total_images = {config.run.total_images:,}: choose "
        "another --out"
      )
    scorer = Scorer(scored, trained.algorithm, source, title=None)
    for _, numbers in scorer(trained.params, trained.carry):
      scores |= {name: value for name, value in numbers.items() if name in factory.BEST_METRICS}
    _save_samples(result_path(results, trial.entry, trial.name).with_suffix(".png"), scored, trained)
  metrics = read_metrics(workdir)
  curves = {name: metrics[f"metrics/{name}"] for name in factory.BEST_METRICS if f"metrics/{name}" in metrics}
  speed = metrics.get("progress/images_per_second", ((), ()))[1]
  params, _ = jax.eval_shape(experiment.algorithm.init, jax.random.key(0))
  result = Result(
    entry=trial.entry,
    seed=trial.seed,
    rate=trial.rate,
    recipe=config.name,
    settings=trial.settings,
    multiply_adds=float(trial.comparison.multiply_adds),
    images=config.run.total_images,
    multiply_adds_per_image=each,
    seconds_per_1000_images=1000 / float(np.median(speed)) if len(speed) else None,
    parameters={name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in sorted(params)},
    diverged_at=diverged_at,
    protocol=scoring.protocol(scored, experiment.algorithm),
    curves={name: {"images_seen": x.tolist(), "values": y.tolist()} for name, (x, y) in curves.items()},
    scores=scores,
  )
  _write(result_path(results, trial.entry, trial.name), asdict(result))


def of_length(config: ConfigDict, images: int) -> ConfigDict:
  """Returns a recipe for another number of images: what `config.gan` counts in images changes in proportion."""
  config = config.copy_and_resolve_references()
  longer = images / config.run.total_images
  config.gan.update({name: times(config.gan[name], longer) for name in filter(counts_images, config.gan)})
  config.run.total_images = images
  config.run.log_every_images = max(1, images // 40)
  config.run.snapshot_every_images = math.ceil(images / EVALUATIONS)
  config.run.keep_checkpoints = 1
  return config


def measure_bounds(comparison: ConfigDict, results: epath.Path) -> None:
  """Scores what no GAN has drawn, as floors and ceilings of the scores: see `_bounding_sets`."""
  entry, config = _conditional_if_any(comparison)
  algorithm = factory.build_algorithm(entry)
  source = factory.build_source(config)
  drawing, besides = factory.drawing(factory.with_numbers(entry), algorithm)
  scorer = Scorer(config, drawing, source, title=None)
  state = jax.jit(lambda: init_state(algorithm, config.seed))()
  params, carry = averaged(algorithm, state)
  found = {"untrained network": scorer({**params, **besides}, carry)}
  found |= {name: scorer.of_images(images) for name, images in _bounding_sets(config, drawing, source)}
  scores = {
    name: {score: value for _, part in parts for score, value in part.items() if score in factory.BEST_METRICS}
    for name, parts in found.items()
  }
  _write(
    results / f"{BOUNDS}.json", {"protocol": scorer.protocol, "metrics": list(config.run.metrics), "scores": scores}
  )


def has_bounds(comparison: ConfigDict, results: epath.Path) -> bool:
  """Returns whether `measure_bounds` has left the numbers of this protocol."""
  path = results / f"{BOUNDS}.json"
  if not path.exists():
    return False
  entry, config = _conditional_if_any(comparison)
  kept = read_json(path)
  protocol = scoring.protocol(config, factory.build_algorithm(entry, "cpu"))
  return kept.get("protocol") == protocol and kept.get("metrics") == [*config.run.metrics]


def _conditional_if_any(comparison: ConfigDict) -> tuple[ConfigDict, ConfigDict]:
  """Returns the first conditional entry, which has all metrics, or the first one: to train, and `_at_the_end`."""
  entries = [comparison.entries[name].config.copy_and_resolve_references() for name in comparison.order]
  built = [(config, factory.build_algorithm(config, "cpu")) for config in entries]
  chosen, algorithm = next((pair for pair in built if pair[1].num_classes), built[0])
  return chosen, _at_the_end(comparison, chosen, algorithm)


def _bounding_sets(config: ConfigDict, algorithm: Algorithm, source: Source) -> Iterator[tuple[str, ImageSet]]:
  """Yields real images that are not compared with, if there are any, and one real image (of each class), repeated."""
  count, shape = config.run.metric_samples, algorithm.image_shape
  others, indices = source, np.arange(count, 2 * count)
  if has_test_images(config):
    others = labelled(config, "test")
    indices = np.arange(min(count, len(others)))
  if others is not source or config.data.source.startswith("stacked"):
    yield "real images", _images(others, indices, shape, bool(algorithm.num_classes))
  if algorithm.num_classes:
    labels = source[np.arange(min(len(source), count))]["label"]
    firsts = np.array([np.argmax(labels == kind) for kind in range(algorithm.num_classes)])
    yield "one image a class", _images(source, firsts[np.arange(count) % len(firsts)], shape, True)
  else:
    yield "one image", _images(source, np.zeros(count, np.int64), shape, False)


def _images(source: Source, chosen: np.ndarray, shape: tuple[int, int, int], with_labels: bool) -> ImageSet:
  labels = (lambda part: source[chosen[part]]["label"]) if with_labels else None
  return ImageSet("bound", len(chosen), shape, lambda part: source[chosen[part]]["image"], labels=labels)


def _at_the_end(comparison: ConfigDict, config: ConfigDict, algorithm: Algorithm) -> ConfigDict:
  """Returns a configuration, of images, whose `run` has the metrics and samples of the end of a run."""
  config = factory.of_images(factory.with_numbers(config)).copy_and_resolve_references()
  metrics = comparison.metrics
  config.run.metrics = tuple(name for name in metrics if algorithm.num_classes or name not in (*OF_CLASSES, "cas"))
  config.run.metric_samples = comparison.samples
  config.run.best_metric = ""
  return config


def _save_samples(path: epath.Path, config: ConfigDict, trained: runs.TrainedRun) -> None:
  algorithm = trained.algorithm
  quantised_in = factory.quantised_in(config, algorithm)
  sampler = Sampler(algorithm, make_mesh(jax.local_devices()), quantised_in=quantised_in, title=None)
  seeds = np.arange(SHOWN)
  labels = seeds % algorithm.num_classes if algorithm.num_classes else None
  save_png(path, image_grid(sampler(trained.params, trained.carry, seeds, labels), SHOWN))


def times(value: Any, factor: float) -> Any:
  """Returns a number or a pair of them times `factor`; of integers, the nearest one."""
  if isinstance(value, tuple | list):
    return tuple(times(element, factor) for element in value)
  return round(value * factor) if isinstance(value, int) else value * factor


def _write(path: epath.Path, values: Mapping[str, Any]) -> None:
  with failing_as(f"cannot write {path}", path, "choose another --results"):
    write_whole(path, json.dumps(values) + "\n")
