"""Which series are scores, by which protocol; what shares a panel; what is healthy; how panels are drawn."""

import re

import numpy as np
import pytest

from r3gan_jax.reporting import drawing, series
from r3gan_jax.reporting.series import Curve, Panel

PROTOCOL = {"network": "default", "num_samples": 50000, "seed": 0}


def metrics(*names, values=(3.0, 2.0, 5.0)):
  return {name: (np.arange(1, len(values) + 1), np.array(values)) for name in names}


def test_each_score_has_its_best_and_its_protocol():
  found = series.scores(
    metrics(
      "metrics/fid", "metrics/num_real", "metrics/num_fake", "metrics/recall", "metrics/neighbours", "metrics/odd"
    )
    | metrics("metrics/fid (num_samples=1000, network=a b)", "metrics/kid", "metrics/kid_std", "metrics/kid_subsets")
    | metrics("metrics/coverage", "metrics/density_coverage_neighbours", "metrics/authenticity_num_real")
    | metrics("metrics/classification_error", "metrics/classification_error_test_images")
    | metrics("metrics/modes", "metrics/modes_samples", "metrics/real_modes"),
    PROTOCOL,
  )
  assert [(score.title, score.best, score.details) for score in found] == [
    ("FID", (2.0, 2), "network inception, num samples 50,000, seed 0, num real 5"),
    ("recall", (5.0, 3), "network vgg16, num samples 50,000, seed 0, neighbours 5"),
    ("odd", None, "network default, num samples 50,000, seed 0"),
    ("FID (num_samples=1000, network=a b)", (2.0, 2), "network a b, num samples 1000, seed 0"),
    ("KID", (2.0, 2), "network inception, num samples 50,000, seed 0, kid std 5, kid subsets 5"),
    ("coverage", (5.0, 3), "network vgg16, num samples 50,000, seed 0, density coverage neighbours 5"),
    ("classification error on test images", (2.0, 2), "classification error test images 5"),
    ("modes of 1000", (5.0, 3), "num samples 50,000, seed 0"),
  ]
  assert found[-1].real == 5.0 and np.isnan(found[0].real)


@pytest.mark.parametrize(
  ("name", "values", "best"),
  [
    ("fid", (np.nan, 4.0, 4.0), (4.0, 2)),
    ("fid", (-np.inf, 4.0, 9.0), (4.0, 2)),
    ("modes", (1.0, np.inf, 0.5), (1.0, 1)),
    ("fid", (np.nan,), None),
  ],
)
def test_best_is_finite_and_the_first_of_equals(name, values, best):
  (score,) = series.scores(metrics(f"metrics/{name}", values=values), {})
  assert score.best == best


R3GAN = ("discriminator/adversarial_loss", "generator/loss", "discriminator/relativistic_sign")
NOTES = [
  (R3GAN, {}, "Both are ln 2"),
  (R3GAN, {"gan": {"loss": "relativistic"}}, "Both are ln 2"),
  (R3GAN, {"gan": {"loss": "non_saturating"}}, "2 ln 2 = 1.39"),
  (("discriminator/adversarial_loss", "generator/loss"), {"gan": 5}, "2 ln 2 = 1.39"),  # StyleGAN2
  (("discriminator/loss", "generator/loss"), {}, "2 ln 2 = 1.39"),  # DCGAN
  (("pairs/loss", "pairs/generator_and_encoder_loss"), {}, "Both are ln 2"),  # BiGAN: half the sum
  (("discriminator/wasserstein_estimate", "generator/loss"), {}, "see the Wasserstein estimate"),
]


@pytest.mark.parametrize(("names", "config", "note"), NOTES)
def test_what_is_healthy_depends_on_the_loss(names, config, note):
  panel = series.training_panels(metrics(*names), config)[0]
  assert panel.title == "adversarial losses" and note in panel.note


@pytest.mark.parametrize("algorithm", ["acgan", "ebgan", "infogan", "sgan"])
def test_no_level_is_named_for_losses_with_other_terms(algorithm):
  (panel,) = series.training_panels(metrics("discriminator/loss", "generator/loss"), {"algorithm": algorithm})
  assert panel.title == "adversarial losses" and not panel.note


def test_every_series_of_training_is_in_one_panel():
  names = (*R3GAN, "discriminator/loss", "discriminator/r1", "generator/gradient_norm", "discriminator/penalty", "x")
  panels = series.training_panels(metrics(*names, "metrics/fid", "progress/x"), {})
  assert [panel.title for panel in panels] == [
    *("adversarial losses", "gradient penalties", "relativistic logits: mean sign", "gradient norms"),
    *("D's loss with its penalties", "discriminator/penalty", "x"),
  ]
  assert sum(len(panel.curves) for panel in panels) == len(names)


def test_the_adversarial_losses_are_those_without_other_terms():
  names = [f"{player}/{name}" for player in ("discriminator", "generator") for name in ("adversarial_loss", "loss")]
  panel, *others = series.training_panels(metrics(*names, "generator/cross_entropy"), {})
  assert [curve.label for curve in panel.curves] == ["D", "G"]
  assert [other.title for other in others] == [
    *("cross-entropy of the classifier that guides G", "D's loss with its penalties", "generator/loss")
  ]


def test_networks_for_several_resolutions_share_panels():
  """Ordered by their side; a number that is not a side is part of a name (`gradient_norm_every_16`)."""
  names = (*(f"{player}/loss_{side}" for side in (16, 8) for player in ("discriminator", "generator")), "generator_8/x")
  panels = series.training_panels(metrics(*names, "generator_16/gradient_norm", "generator/gradient_norm_every_16"), {})
  assert [(panel.title, [curve.label for curve in panel.curves]) for panel in panels] == [
    ("adversarial losses", ["D, 8x8", "G, 8x8", "D, 16x16", "G, 16x16"]),
    ("gradient norms", ["G, 16x16"]),
    ("generator 8/x", [""]),
    ("generator/gradient norm every 16", [""]),
  ]
  assert "2 ln 2 = 1.39" in panels[0].note


def test_constant_schedules_have_no_panel():
  panels, constants = series.schedule_panels(
    metrics("hyperparameters/gamma", values=(0.3, 0.30000001)) | metrics("hyperparameters/beta2", "generator/loss")
  )
  assert constants == {"gamma": 0.3} and [panel.title for panel in panels] == ["Adam's beta2"]


def y_ticks(*values, logarithmic=True):
  """Returns label -> height of the axis of values."""
  curve = Curve("", np.arange(1, len(values) + 1), np.array(values))
  texts = re.findall(r'y="([^"]+)"[^>]*>([^<]+)</text>', drawing.svg(Panel("x", [curve], "", logarithmic), "label"))
  begin = [text for _, text in texts].index("images seen (thousands)") + 1
  return {float(text.replace("\u2212", "-")): -float(y) for y, text in texts[begin:]}


def test_axes_are_logarithmic_where_values_are_positive():
  ticks = y_ticks(300.0, 30.0, 3.0)
  assert ticks[100.0] - ticks[50.0] == pytest.approx(ticks[20.0] - ticks[10.0], abs=0.01)  # factors of two
  assert len(y_ticks(3.1, 3.0)) >= 2  # less than an octave
  for linear in (y_ticks(300.0, 3.0, -1.0), y_ticks(300.0, 3.0, logarithmic=False)):
    assert linear[200.0] - linear[100.0] == pytest.approx(linear[100.0] - linear[0.0], abs=0.01)


@pytest.mark.parametrize("values", [(np.nan, np.inf), (1e308, -1e308), (0.0,), (1e-300, 1e300)], ids=str)
def test_any_values_are_drawn(values):
  panel = Panel("$x", [Curve("", np.arange(1, len(values) + 1), np.array(values))], "", True)
  assert drawing.svg(panel, "x").startswith("<svg") and drawing.png([panel]).startswith(b"\x89PNG")


def test_thinned_curves_keep_their_peaks():
  values = np.sin(np.arange(100_000.0))
  values[[12_345, 54_321]] = 9.0, -9.0
  thinned = drawing.thinned(Curve("", np.arange(100_000), values))
  assert len(thinned.values) <= drawing.MAX_POINTS + 1
  assert {12_345, 54_321, 99_999} <= set(thinned.images_seen.tolist()) and np.all(np.diff(thinned.images_seen) > 0)
