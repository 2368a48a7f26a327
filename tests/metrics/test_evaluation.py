"""From images to metrics, with a tiny linear feature network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.meshes import mesh_of
from scipy import linalg

from r3gan_jax.errors import UserError
from r3gan_jax.metrics.density_coverage import density_coverage
from r3gan_jax.metrics.evaluation import METRICS, Evaluation
from r3gan_jax.metrics.feature_extractor import ImageSet
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.metrics.fid import fid
from r3gan_jax.metrics.inception_score import InceptionScore
from r3gan_jax.metrics.kid import kid
from r3gan_jax.metrics.memorisation import authenticity
from r3gan_jax.metrics.mind import mind
from r3gan_jax.metrics.moments import Moments
from r3gan_jax.metrics.neighbourhoods import Neighbourhoods
from r3gan_jax.metrics.precision_recall import precision_recall
from r3gan_jax.metrics.statistics_cache import StatisticsCache

RNG = np.random.default_rng(0)
REAL = RNG.integers(0, 256, (1100, 2, 2, 3), np.uint8)
FAKE = RNG.integers(30, 256, (1050, 2, 2, 3), np.uint8)
WEIGHTS = RNG.normal(size=(12, 5)).astype(np.float32)


def linear(params, images):
  outputs = images.reshape(len(images), 12).astype(jnp.float32) / 255.0 @ params
  return {"features": outputs, "logits_without_bias": outputs, "logits": outputs[:, None]}


def features(images):
  return np.asarray(jax.jit(linear)(WEIGHTS, images)["features"])


class Images:
  """Images by index, counting how many are read."""

  def __init__(self, images):
    self._images = images
    self.asked = 0

  def __call__(self, indices):
    self.asked += len(indices)
    return self._images[indices]


NETWORK = FeatureNetwork("linear", linear, WEIGHTS, "none")


def image_set(name, images, fingerprint=None, labels=None):
  labels = None if labels is None else labels.__getitem__
  return ImageSet(name, len(images), images.shape[1:], Images(images), fingerprint and (lambda: fingerprint), labels)


LABELS, ASKED = RNG.integers(0, 3, len(REAL)), RNG.integers(0, 3, len(FAKE))


def expected_of_classes():
  """The mean over classes of |m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2)), and how often the largest logit is right."""
  distances = []
  for kind in range(3):
    (m1, c1), (m2, c2) = (
      (part.mean(axis=0), np.cov(part, rowvar=False))
      for part in (features(REAL)[kind == LABELS].astype(float), features(FAKE)[kind == ASKED].astype(float))
    )
    distances.append(np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real))
  found = np.mean(
    [max(range(5), key=row.__getitem__) == asked for row, asked in zip(features(FAKE), ASKED, strict=True)]
  )
  numbers = {"intra_fid_num_real": 1100, "intra_fid_num_fake": 1050, "class_accuracy_num_fake": 1050}
  return {"intra_fid": np.mean(distances), "class_accuracy": found} | numbers


def test_all_metrics():
  mesh = mesh_of(8)
  evaluation = Evaluation(METRICS, NETWORK, mesh, image_set("real", REAL, labels=LABELS), batch_per_device=32)
  result = evaluation(image_set("fake", FAKE, labels=ASKED), seed=3)
  real, fake = features(REAL), features(FAKE)
  score = InceptionScore(len(fake), seed=3)
  score.add(fake)
  expected = fid(Moments.of(real), Moments.of(fake)) | kid(real, fake, seed=3) | score.result()
  expected |= {"fd_dinov2": expected["fid"]} | mind(real, fake, seed=3)
  expected |= precision_recall(real, fake, mesh_of(1)) | expected_of_classes()
  sides = Neighbourhoods(real, fake, mesh_of(1))
  expected |= density_coverage(sides) | authenticity(sides)
  assert result == pytest.approx(expected, rel=1e-5)
  assert result["num_real"] == 1100 and result["num_fake"] == 1050


def test_what_fid_does_not_see():
  """Images of two classes, dark and bright: exchanged labels, and one image a class."""
  classes = np.repeat(np.arange(2), 500)
  images = RNG.integers(0, 100, (1000, 2, 2, 3), np.uint8) + (100 * classes).astype(np.uint8)[:, None, None, None]

  def brightness(params, images):
    pixels = images.reshape(len(images), 12).astype(jnp.float32) / 255.0
    return {"features": pixels, "logits": jnp.stack([100 / 255 - pixels.mean(1), pixels.mean(1) - 100 / 255], 1)}

  network = FeatureNetwork("brightness", brightness, (), "none")
  metrics = ("fid", "class_accuracy", "intra_fid")
  evaluation = Evaluation(metrics, network, mesh_of(8), image_set("real", images, labels=classes))

  def evaluate(fake, labels=classes):
    numbers = evaluation(image_set("fake", fake, labels=labels))
    return tuple(numbers[metric] for metric in metrics)

  assert evaluate(images) == pytest.approx((0, 1, 0), abs=1e-6)
  apart = 12 * (100 / 255) ** 2
  assert evaluate(images, 1 - classes) == (pytest.approx(0, abs=1e-6), 0, pytest.approx(apart, rel=0.05))
  _, accuracy, intra_fid = evaluate(images[500 * classes])
  pixels = images.reshape(2, 500, 12) / 255
  from_the_mean = np.sum((pixels[:, 0] - pixels.mean(axis=1)) ** 2, axis=1)
  assert accuracy == 1
  assert intra_fid == pytest.approx(np.mean(from_the_mean + pixels.var(axis=1, ddof=1).sum(axis=1)), rel=1e-5)


def test_classes_that_are_missing():
  real, labelled = image_set("real", REAL), image_set("real", REAL, labels=LABELS)
  with pytest.raises(UserError, match="intra_fid needs the classes of real images"):
    Evaluation(["intra_fid"], NETWORK, mesh_of(8), real)(image_set("fake", FAKE, labels=ASKED))
  for metric in ("intra_fid", "class_accuracy"):
    with pytest.raises(UserError, match=f"{metric} needs samples that were asked for by class"):
      Evaluation([metric], NETWORK, mesh_of(8), labelled)(image_set("fake", FAKE))
  with pytest.raises(UserError, match=r"class 2 has \d+ real and 1 fake"):
    asked = np.where(np.arange(len(FAKE)), ASKED % 2, 2)
    Evaluation(["intra_fid"], NETWORK, mesh_of(8), labelled)(image_set("fake", FAKE, labels=asked))
  with pytest.raises(UserError, match="class 5 is asked for, but the feature network classifies 5"):
    Evaluation(["class_accuracy"], NETWORK, mesh_of(8), labelled)(image_set("fake", FAKE, labels=0 * ASKED + 5))
  plain = FeatureNetwork("plain", lambda params, images: {"features": linear(params, images)["features"]}, WEIGHTS, "")
  with pytest.raises(UserError, match="class_accuracy needs the logits of one class an image, which plain"):
    Evaluation(["class_accuracy"], plain, mesh_of(8))(image_set("fake", FAKE, labels=ASKED))


def test_what_is_possible(caplog):
  """Metrics that the network, the classes or the number of images do not allow are left out, and named."""
  plain = FeatureNetwork("plain", lambda params, images: {"features": linear(params, images)["features"]}, WEIGHTS, "")
  labelled = image_set("real", REAL, labels=LABELS)

  def possible(num_fake=1050, network=NETWORK, real=labelled, with_classes=True):
    caplog.clear()
    evaluation = Evaluation(METRICS, network, mesh_of(8), real).possible(num_fake, (2, 2, 3), with_classes)
    left_out = [record.getMessage().split(" is left out: ")[0] for record in caplog.records]
    assert sorted((*evaluation.metrics, *left_out)) == sorted(METRICS)
    return left_out

  with caplog.at_level("INFO"):
    assert possible() == []
    assert possible(network=plain) == ["inception_score", "class_accuracy"]
    assert possible(with_classes=False) == ["class_accuracy", "intra_fid"]
    assert possible(real=image_set("real", REAL)) == ["intra_fid"]
    assert possible(num_fake=3) == ["inception_score", "precision_recall"]
    assert possible(real=image_set("real", REAL[:5], labels=LABELS)) == ["density_coverage"]
    assert "need at least 6 real images" in caplog.text


def test_a_large_set_has_features_of_an_even_part_and_moments_of_all(monkeypatch):
  monkeypatch.setattr("r3gan_jax.metrics.evaluation.MAX_FEATURES", 300)
  metrics, mesh = ["fid", "inception_score", "precision_recall"], mesh_of(8)
  result = Evaluation(metrics, NETWORK, mesh, image_set("real", REAL))(image_set("fake", FAKE))
  score = InceptionScore(len(FAKE))
  score.add(features(FAKE))
  some = [images[np.linspace(0, len(images) - 1, 300).astype(int)] for images in (REAL, FAKE)]
  expected = fid(Moments.of(features(REAL)), Moments.of(features(FAKE))) | score.result()
  assert result == pytest.approx(expected | precision_recall(*map(features, some), mesh_of(1)), rel=1e-5)
  assert result["precision_recall_num_real"] == 300 and result["num_real"] == 1100


def test_images_against_themselves():
  evaluation = Evaluation(["fid", "precision_recall"], NETWORK, mesh_of(8), image_set("real", REAL))
  result = evaluation(image_set("fake", REAL))
  assert evaluation(image_set("fake", REAL)) == result
  assert abs(result["fid"]) < 1e-6 and result["precision"] == result["recall"] == 1.0


def test_statistics_of_real_images_are_computed_once(tmp_path, monkeypatch):
  cache, mesh = StatisticsCache(tmp_path / "cache"), mesh_of(8)

  def evaluate(metrics=("fid", "precision_recall"), fingerprint="data", real=REAL, network=NETWORK):
    images = image_set("real", real, fingerprint)
    evaluation = Evaluation(metrics, network, mesh, images, cache)
    result = evaluation(image_set("fake", FAKE))
    asked = images.images.asked
    evaluation(image_set("fake", FAKE))
    assert images.images.asked == asked, "kept between calls"
    return result, asked > 0

  first, computed = evaluate(["fid"])
  assert computed
  both, computed = evaluate()
  assert computed and both["fid"] == first["fid"], "features were not cached yet"
  assert evaluate() == (both, False)
  # Each part of the key matters.
  assert evaluate(fingerprint="other")[1] and evaluate(real=REAL[:1000])[1] and evaluate(fingerprint=None)[1]
  assert evaluate(network=FeatureNetwork("linear", linear, 2 * WEIGHTS, "none"))[1]
  assert evaluate(network=FeatureNetwork("linear", linear, WEIGHTS, "other"))[1]
  assert evaluate(network=FeatureNetwork("other", linear, WEIGHTS, "none"))[1]
  with monkeypatch.context() as changed:
    changed.setattr("r3gan_jax.metrics.evaluation.NEIGHBOURS", 6)
    assert evaluate()[1]
  # Damaged files are recomputed once, and there are no other files.
  files = list((tmp_path / "cache").iterdir())
  assert len(files) == 19 and all(file.suffix == ".npz" for file in files)
  for number, file in enumerate(files):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes([data, data[: len(data) // 2], b""][number % 3])
  assert evaluate() == (both, True)
  assert evaluate() == (both, False)


def test_other_data_on_another_process(tmp_path, monkeypatch):
  both = "r3gan_jax.metrics.evaluation.multihost_utils.process_allgather"
  monkeypatch.setattr(both, lambda own: np.stack([own, own ^ 1]))
  images = image_set("real", REAL, "data")
  with pytest.raises(UserError, match="the real images are not the same on all processes"):
    Evaluation(["fid"], NETWORK, mesh_of(8), images, StatisticsCache(tmp_path))(image_set("fake", FAKE))
  assert images.images.asked == 0


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:300], lambda data: b"x" * len(data)])
def test_a_damaged_cache_file_counts_as_missing(tmp_path, damage):
  cache = StatisticsCache(tmp_path)
  assert cache.load({"size": 1}) is None
  cache.save({"size": 1}, {"mean": np.arange(99.0)})
  np.testing.assert_array_equal(cache.load({"size": 1})["mean"], np.arange(99.0))
  (file,) = tmp_path.iterdir()
  file.write_bytes(damage(file.read_bytes()))
  assert cache.load({"size": 1}) is None


def test_a_cache_that_cannot_be_written_costs_nothing_computed(tmp_path, caplog):
  (tmp_path / "file").write_text("no directory")
  cache = StatisticsCache(tmp_path / "file")
  assert cache.load({"size": 1}) is None
  cache.save({"size": 1}, {"mean": np.arange(99.0)})
  assert "cannot be kept" in caplog.text


def test_inception_score_alone_needs_no_real_images():
  result = Evaluation(["inception_score"], NETWORK, mesh_of(8))(image_set("fake", FAKE))
  assert set(result) == {"inception_score", "inception_score_std", "inception_score_splits", "num_fake"}


def test_bad_input_is_refused():
  mesh = mesh_of(8)

  def evaluate(fake, metrics=("fid",), network=NETWORK, real=REAL):
    return Evaluation(metrics, network, mesh, image_set("real", real))(ImageSet("fake", 1050, (2, 2, 3), fake))

  with pytest.raises(UserError, match="'fud' is unknown: choose from fid, fd_dinov2"):
    evaluate(FAKE.__getitem__, metrics=["fud"])
  with pytest.raises(UserError, match="kid compares with real images"):
    Evaluation(["kid"], NETWORK, mesh)(image_set("fake", FAKE))
  with pytest.raises(UserError, match="fake images have NaN"):
    evaluate(lambda indices: np.full((len(indices), 2, 2, 3), np.nan, np.float32))
  with pytest.raises(UserError, match="fake images are float32: give uint8"):
    evaluate(lambda indices: np.zeros((len(indices), 2, 2, 3), np.float32))
  with pytest.raises(UserError, match=r"fake images differ in size, \(2, 2, 3\) and \(3, 2, 3\)"):
    evaluate(lambda indices: np.zeros((len(indices), 2 + (indices[0] > 0), 2, 3), np.uint8))
  with pytest.raises(UserError, match="features of real images have NaN or infinity"):
    evaluate(FAKE.__getitem__, network=FeatureNetwork("linear", linear, WEIGHTS * np.float32(np.nan), "none"))
  with pytest.raises(UserError, match="inception_score needs class logits"):
    network = FeatureNetwork(
      "plain", lambda params, images: {"features": linear(params, images)["features"]}, WEIGHTS, ""
    )
    evaluate(FAKE.__getitem__, ["inception_score"], network)


def test_too_few_images_are_refused_before_any_work():
  real = image_set("real", REAL[:1])
  with pytest.raises(UserError, match=r"KID needs at least 2 images per side, .* 1 real and 1050 fake"):
    Evaluation(["kid"], NETWORK, mesh_of(8), real)(image_set("fake", FAKE))
  assert real.images.asked == 0
