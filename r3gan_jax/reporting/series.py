"""The series of metrics.jsonl as a reader sees them: scores with their protocol, and panels of curves."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from r3gan_jax.comparison import network_of
from r3gan_jax.factory import BEST_METRICS
from r3gan_jax.reporting import health

Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""See `training.logging.read_metrics`."""

TITLES = {
  "cas": "classification accuracy score",
  "class_accuracy": "accuracy of a classifier on the classes asked for",
  "classification_error": "classification error on test images",
  "fd_dinov2": "FD in DINOv2's features",
  "fid": "FID",
  "intra_fid": "FID within classes",
  "kid": "KID",
  "mind": "MIND",
  "inception_score": "Inception score",
  "modes": "modes of 1000",
  "modes_kl": "KL(samples || uniform), nats",
  "ppl": "perceptual path length",
  "psnr": "PSNR of samples, dB",
  "ssim": "SSIM of samples",
  "feature_distance": "feature distance of samples from true images",
  "diversity": "feature distance of two samples of one condition",
  "consistency": "PSNR of the conditions of samples, dB",
  "baseline_psnr": "PSNR without a network, dB",
  "baseline_ssim": "SSIM without a network",
  "baseline_feature_distance": "feature distance without a network",
}
LOGARITHMIC = ("fid", "fd_dinov2", "intra_fid", "kid", "mind", "modes_kl")

_METRICS = dict.fromkeys(("precision", "recall"), "precision_recall")
_METRICS |= dict.fromkeys(("density", "coverage"), "density_coverage")
"""Score -> the metric that computes it, where their names differ."""
_DETAILS = {
  "authenticity": ("authenticity_",),
  "cas": ("cas_", "real_cas"),
  "class_accuracy": ("class_accuracy_",),
  "classification_error": ("classification_error_",),
  "coverage": ("density_coverage_",),
  "density": ("density_coverage_",),
  "fd_dinov2": ("num_real", "num_fake"),
  "fid": ("num_real", "num_fake"),
  "intra_fid": ("intra_fid_num_",),
  "kid": ("kid_",),
  "mind": ("mind_",),
  "inception_score": ("inception_score_", "num_fake"),
  "precision": ("precision_recall_", "neighbours"),
  "recall": ("precision_recall_", "neighbours"),
  "modes": ("modes_samples",),
  "modes_kl": ("modes_samples",),
  "ppl": ("ppl_",),
}
"""Score -> how the names of those series begin that say how it was computed."""
_ENDINGS = (
  "_samples",
  "num_real",
  "num_fake",
  "neighbours",
  "_subsets",
  "_projections",
  "_paths",
  "_subset_size",
  "_splits",
  "_std",
  "seed",
  "_images",
)
"""How the names of such series end: they are no scores themselves."""

_TRAINING: dict[str, tuple[bool, dict[str, str]]] = {
  "adversarial losses": (
    False,
    {
      "discriminator/adversarial_loss": "D",
      "discriminator/loss": "D",
      "generator/adversarial_loss": "G",
      "generator/loss": "G",
      "both/loss": "D",
      "both/generator_loss": "G",
      "pairs/loss": "D",
      "pairs/generator_and_encoder_loss": "G and encoder",
    },
  ),
  "Wasserstein estimate": (False, {"discriminator/wasserstein_estimate": ""}),
  "gradient penalties": (True, {"discriminator/r1": "R1 (on reals)", "discriminator/r2": "R2 (on fakes)"}),
  "norm of the critic's gradient at mixed images": (False, {"discriminator/input_gradient_norm": ""}),
  "relativistic logits: mean sign": (
    False,
    {"discriminator/relativistic_sign": "D", "generator/relativistic_sign": "G"},
  ),
  "D's mean logits": (
    False,
    {
      "discriminator/real_logits": "of reals",
      "discriminator/fake_logits": "of fakes",
      "both/real_logits": "of reals",
      "both/fake_logits": "of fakes",
      "pairs/real_logits": "of reals",
      "pairs/fake_logits": "of fakes",
    },
  ),
  "gradient norms": (
    True,
    {"discriminator/gradient_norm": "D", "generator/gradient_norm": "G", "encoder/gradient_norm": "encoder"},
  ),
  "path length": (False, {"generator/path_length": ""}),
  "cosine of D's features and the pretrained network's": (False, {"discriminator/alignment": ""}),
  "cross-entropy of the classifier that guides G": (False, {"generator/cross_entropy": ""}),
  "D's loss with its penalties": (False, {}),
}
"""Title -> (whether the axis is logarithmic, series -> label)."""
_SIDE = re.compile(r"_(\d+)(?=/|$)")
"""The side of the images that a series is about, if the GAN has networks for several: discriminator/loss_16."""
_SPEED = {
  "progress/images_per_second": ("images/s", 1.0),
  "progress/peak_memory_bytes": ("peak memory, GiB", 2.0**-30),
  "progress/snapshot_seconds": ("snapshots, seconds", 1.0),
}
_SCHEDULES = {
  "augment_p": "augmentation probability",
  "beta2": "Adam's beta2",
  "ema_half_life": "half-life of the moving average, images",
}


class Curve(NamedTuple):
  label: str
  images_seen: np.ndarray  # int64 [n]
  values: np.ndarray  # float64 [n]


class Panel(NamedTuple):
  title: str
  curves: list[Curve]
  note: str = ""  # what is healthy
  logarithmic: bool = False  # where all values are positive


class Score(NamedTuple):
  """One score by one protocol, at all counts of images seen."""

  name: str  # "fid"
  suffix: str  # what differs from the run's protocol, " (num_samples=1000)" or ""
  details: str  # the whole protocol
  curve: Curve
  real: float  # the same of real images; NaN if unknown

  @property
  def title(self) -> str:
    return TITLES.get(self.name, self.name.replace("_", " ")) + self.suffix

  @property
  def aim(self) -> str:
    """Returns "min", "max", or "" if it is unknown what is best."""
    return BEST_METRICS[self.name][1] if self.name in BEST_METRICS else ""

  @property
  def best(self) -> tuple[float, int] | None:
    """Returns (value, images seen), the first of equals; None if it is unknown what is best."""
    values = self.curve.values
    finite = np.flatnonzero(np.isfinite(values))
    if not self.aim or not len(finite):
      return None
    index = finite[np.argmin(values[finite]) if self.aim == "min" else np.argmax(values[finite])]
    return float(values[index]), int(self.curve.images_seen[index])


def scores(metrics: Metrics, protocol: Mapping[str, Any]) -> list[Score]:
  """Returns the scores of a run, whose own protocol is `protocol`."""
  found = {
    tuple(name.removeprefix("metrics/").partition(" ")[::2]): series
    for name, series in metrics.items()
    if name.startswith("metrics/")
  }
  return [
    Score(
      name,
      f" {differences}" if differences else "",
      _details(name, differences, protocol, {key: found[key, d][1][-1] for key, d in found if d == differences}),
      Curve("", *series),
      found[f"real_{name}", differences][1][-1] if (f"real_{name}", differences) in found else np.nan,
    )
    for (name, differences), series in found.items()
    if is_score(name)
  ]


def is_score(name: str) -> bool:
  """Returns whether a number, such as "fid", is a score itself, and does not say how one was computed."""
  return not name.endswith(_ENDINGS) and not name.startswith("real_")


def _details(name: str, differences: str, protocol: Mapping[str, Any], numbers: Mapping[str, float]) -> str:
  """Returns the protocol of a score as text.

  Args:
    differences: "(num_samples=1000, seed=1)" or "".
    numbers: the last values of the series by the same protocol.
  """
  parts = {key: f"{value:,}" if isinstance(value, int) else str(value) for key, value in protocol.items()}
  parts |= dict(part.split("=", 1) for part in differences.strip("()").split(", ") if "=" in part)
  if "network" in parts and name in _DETAILS:
    chosen = parts["network"] if parts["network"] != "default" else ""
    parts["network"] = network_of(_METRICS.get(name, name), chosen)
  if name == "classification_error":  # no samples are drawn
    parts = {}
  if name.startswith("modes") or name in ("cas", "ppl"):  # their classifiers need neither, nor does LPIPS
    parts = {key: value for key, value in parts.items() if key not in ("network", "resize")}
  if name == "ppl":
    parts.pop("quantised_in", None)
  for key, value in numbers.items():
    counts_samples = key.endswith(("_samples", "num_fake"))
    if (
      key.startswith(_DETAILS.get(name, ()))
      and key.endswith(_ENDINGS)
      and not (counts_samples and "num_samples" in parts)
    ):
      parts[key] = f"{value:,.4g}" if value % 1 else f"{value:,.0f}"
  return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in parts.items())


def score_panels(found: list[Score]) -> list[Panel]:
  """Returns a panel per score."""
  panels = []
  for score in found:
    curves = [score.curve]
    if np.isfinite(score.real):
      ends = score.curve.images_seen[[0, -1]]
      curves = [score.curve._replace(label="generated"), Curve("of real images", ends, np.full(2, score.real))]
    panels.append(Panel(score.title, curves, health.SCORES.get(score.name, ""), score.name in LOGARITHMIC))
  return panels


def training_panels(metrics: Metrics, config: Mapping[str, Any]) -> list[Panel]:
  """Returns the panels of losses and of what else is measured in training: known ones share panels."""
  panels: list[Panel] = []
  left = [name for name in metrics if name.partition("/")[0] not in ("metrics", "hyperparameters", "progress")]
  for title, (logarithmic, labels) in _TRAINING.items():
    labels = {name: label for name, label in labels.items() if name in left} | _by_side(labels, left)
    for player in ("discriminator", "generator"):
      if f"{player}/adversarial_loss" in labels:
        labels.pop(f"{player}/loss", None)
    if title == "D's loss with its penalties" and "discriminator/loss" in left:
      labels = {"discriminator/loss": ""}
    left = [name for name in left if name not in labels]
    if labels:
      curves = [Curve(label, *metrics[name]) for name, label in labels.items()]
      panels.append(Panel(title, curves, health.of_training(title, metrics.keys(), config), logarithmic))
  return panels + [Panel(name.replace("_", " "), [Curve("", *metrics[name])]) for name in left]


def _by_side(labels: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
  """Returns series -> label for those of `names` that are a series in `labels` but for the side of its images."""
  found = [(int(side[1]), name) for name in names if (side := _SIDE.search(name)) and _SIDE.sub("", name) in labels]
  return {name: f"{labels[_SIDE.sub('', name)]}, {side}x{side}" for side, name in sorted(found)}


def schedule_panels(metrics: Metrics) -> tuple[list[Panel], dict[str, float]]:
  """Returns the panels of the schedules that change, and the values of the others by name."""
  panels, constant = [], {}
  for name, (images_seen, values) in metrics.items():
    if name.startswith("hyperparameters/"):
      short = name.removeprefix("hyperparameters/")
      title = _SCHEDULES.get(short, short.replace("_", " "))
      if np.allclose(values, values[0], rtol=1e-5, atol=0):  # computed in float32
        constant[title] = float(values[0])
      else:
        panels.append(Panel(title, [Curve("", images_seen, values)]))
  return panels, constant


def speed_panels(metrics: Metrics) -> list[Panel]:
  """Returns the panels of speed and memory."""
  panels = []
  names = [name for name in metrics if name.startswith("progress/")]
  for name in sorted(names, key=lambda name: [*_SPEED, name].index(name)):
    title, scale = _SPEED.get(name, (name.removeprefix("progress/").replace("_", " "), 1.0))
    images_seen, values = metrics[name]
    panels.append(Panel(title, [Curve("", images_seen, values * scale)], health.SPEED.get(name, "")))
  return panels
