"""FID, KID, Inception score, precision and recall: recorded numbers, closed forms, invariances."""

from pathlib import Path

import numpy as np
import pytest
from helpers.meshes import mesh_of
from scipy import optimize

from r3gan_jax.errors import UserError
from r3gan_jax.metrics.fid import fid, frechet_distance
from r3gan_jax.metrics.inception_score import InceptionScore
from r3gan_jax.metrics.kid import kid, mmd2_unbiased
from r3gan_jax.metrics.mind import PROJECTIONS, mind
from r3gan_jax.metrics.moments import Moments
from r3gan_jax.metrics.precision_recall import precision_recall

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "metrics.npz")
REAL, FAKE = GOLDEN["real"], GOLDEN["fake"]


def golden(name):
  return pytest.approx(float(GOLDEN[name]), rel=1e-6)


def test_golden_fid():
  assert fid(Moments.of(REAL), Moments.of(FAKE)) == {"fid": golden("fid"), "num_real": 1500, "num_fake": 1200}
  # Recorded as "halves of real", which agrees with this split to 1e-12; an even one gives 0.5621.
  assert fid(Moments.of(REAL[:700]), Moments.of(REAL[700:]))["fid"] == golden("fid_self")


def test_golden_kid():
  assert mmd2_unbiased(REAL, FAKE) == golden("mmd2_poly3_unbiased")
  result = kid(REAL[:1200], FAKE, num_subsets=2, max_subset_size=1200)
  assert result["kid"] == golden("kid_equal_m")
  assert result["kid_std"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
  "num_real, num_fake, size", [(1500, 1200, 1000), (999, 1200, 999), (1500, 300, 300), (300, 300, 300), (2, 9, 2)]
)
def test_subsets_of_kid_are_as_large_as_the_smaller_side(num_real, num_fake, size):
  """As in StyleGAN3 and clean-fid: min(n, m, 1000)."""
  result = kid(REAL[:num_real], FAKE[:num_fake], num_subsets=3)
  assert (result["kid_subsets"], result["kid_subset_size"]) == (3, size)
  assert (result["kid_num_real"], result["kid_num_fake"]) == (num_real, num_fake)
  if size == num_real == num_fake:  # all of them in every subset
    assert result["kid"] == pytest.approx(mmd2_unbiased(REAL[:size], FAKE[:size]), rel=1e-9)


def test_golden_inception_score():
  score = InceptionScore(1000)
  logits = np.empty_like(GOLDEN["logits"])
  logits[np.random.RandomState(0).permutation(1000)] = GOLDEN["logits"]  # so that they are in order once shuffled
  for batch in np.split(logits, [64, 128, 350, 999]):
    score.add(batch)
  assert score.result() == {
    "inception_score": golden("is_mean"),
    "inception_score_std": golden("is_std"),
    "inception_score_splits": 10,
    "num_fake": 1000,
  }


@pytest.mark.parametrize("devices", [1, 8])
def test_golden_precision_and_recall(devices):
  assert precision_recall(REAL, FAKE, mesh_of(devices), block=128) == {
    "precision": float(GOLDEN["precision_k3"]),
    "recall": float(GOLDEN["recall_k3"]),
    "neighbours": 3,
    "precision_recall_num_real": 1500,
    "precision_recall_num_fake": 1200,
  }


def test_merged_moments_are_those_of_the_whole():
  rng = np.random.default_rng(0)
  # The mean is a million times the deviation: sums of raw outer products would lose most digits of the variance.
  features = 1e3 + 1e-3 * rng.normal(size=(500, 6))
  merged = Moments.of(features[:1])
  for batch in np.split(features[1:], [7, 100, 480]):
    merged = merged.merged(Moments.of(batch))
  assert merged.count == 500
  np.testing.assert_allclose(merged.mean, features.mean(axis=0), rtol=1e-14)
  np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-7, atol=1e-14)


def test_frechet_distance_of_gaussians_in_closed_form():
  rng = np.random.default_rng(1)
  mean1, mean2 = rng.normal(size=(2, 8))
  deviation1, deviation2 = rng.uniform(0.1, 3.0, size=(2, 8))
  rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
  covariance1, covariance2 = ((rotation * d**2) @ rotation.T for d in (deviation1, deviation2))
  expected = np.sum((mean1 - mean2) ** 2) + np.sum((deviation1 - deviation2) ** 2)  # they commute
  assert frechet_distance(mean1, covariance1, mean2, covariance2) == pytest.approx(expected, rel=1e-12)
  # Two dimensions, not commuting: tr (C1 C2)^(1/2) = sqrt(tr(C1 C2) + 2 sqrt(det(C1 C2))).
  covariance1, covariance2 = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
  product = covariance1 @ covariance2
  expected = 7.0 - 2.0 * np.sqrt(np.trace(product) + 2.0 * np.sqrt(np.linalg.det(product)))
  assert frechet_distance(np.zeros(2), covariance1, np.zeros(2), covariance2) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_singular_gaussians():
  direction = np.array([[3.0, 4.0, 0.0]]) / 5.0
  line, point = direction.T @ direction, np.zeros((3, 3))
  assert frechet_distance(np.zeros(3), 4.0 * line, np.ones(3), 9.0 * line) == pytest.approx(3.0 + (3.0 - 2.0) ** 2)
  assert frechet_distance(np.zeros(3), 4.0 * line, np.zeros(3), point) == pytest.approx(4.0)
  assert frechet_distance(np.zeros(3), point, np.ones(3), point) == pytest.approx(3.0)


@pytest.mark.parametrize("count", [20, 1000])
def test_fid_of_a_set_against_itself_is_0(count):
  features = 5.0 * np.random.default_rng(2).normal(size=(count, 64)).astype(np.float32)
  moments = Moments.of(features)
  assert abs(fid(moments, moments)["fid"]) < 1e-6
  shuffled = Moments.of(features[::-1][: count // 2]).merged(Moments.of(features[: count - count // 2]))
  assert abs(fid(moments, shuffled)["fid"]) < 1e-6


def test_kid_of_equal_distributions_averages_0_and_is_reproducible():
  rng = np.random.default_rng(3)
  distances = [mmd2_unbiased(rng.normal(size=(60, 4)), rng.normal(size=(50, 4))) for _ in range(400)]
  assert abs(np.mean(distances)) < 3 * np.std(distances) / 20  # the biased estimator is off by 20 standard errors
  real, fake = rng.normal(size=(300, 8)), rng.normal(size=(200, 8)) + 0.5
  first = kid(real, fake, seed=5, num_subsets=10, max_subset_size=100)
  assert first == kid(real, fake, seed=5, num_subsets=10, max_subset_size=100)
  assert first["kid"] != kid(real, fake, seed=6, num_subsets=10, max_subset_size=100)["kid"]
  assert first["kid_std"] > 0
  assert first["kid"] == pytest.approx(mmd2_unbiased(real, fake), rel=0.2)


def test_mind_along_a_line_is_optimal_transport():
  """In one dimension all directions are the same: 3 times the least mean squared distance of a matching."""
  real, fake = np.random.default_rng(4).normal(size=(2, 40, 1)).astype(np.float32)
  costs = np.square(real - fake.T)
  least = costs[optimize.linear_sum_assignment(costs)].mean()
  assert mind(real, fake) == {
    "mind": pytest.approx(3 * least, rel=1e-5),
    "mind_projections": PROJECTIONS,
    "mind_images": 40,
  }


def test_mind_of_shifted_features():
  """It is 3 times the squared shift, up to the draw of directions, and FID is the squared shift."""
  rng = np.random.default_rng(5)
  features, shift = rng.normal(size=(500, 32)).astype(np.float32), rng.normal(size=32).astype(np.float32)
  found = mind(features, features + shift)["mind"]
  assert found == pytest.approx(3 * np.sum(shift**2), rel=0.1)
  assert found != mind(features, features + shift, seed=1)["mind"]
  assert mind(features, features)["mind"] == 0


def test_mind_thins_the_larger_side():
  features = np.random.default_rng(6).normal(size=(300, 8)).astype(np.float32)
  thinned = mind(features, features[:200])
  assert thinned == mind(features, features[:200]) and thinned["mind_images"] == 200
  assert 0 < thinned["mind"] < mind(features[100:], 1.5 * features[:200])["mind"]
  with pytest.raises(UserError, match="MIND needs at least 2 images per side, but has 300 real and 1 fake"):
    mind(features, features[:1])


def test_inception_score_by_hand():
  certain = InceptionScore(8, num_splits=2)
  classes = np.empty(8, int)
  classes[np.random.RandomState(0).permutation(8)] = [0, 1, 2, 3, 0, 0, 1, 1]
  certain.add(1e4 * np.eye(4, dtype=np.float32)[classes])
  result = certain.result()  # 4 classes evenly, then 2 classes
  assert result["inception_score"] == pytest.approx(3.0) and result["inception_score_std"] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", [0, 2020])
def test_inception_score_of_a_folder_in_class_order(seed):
  """As torch-fidelity computes it, whose seed is 2020, on logits that it shuffles; unshuffled parts have one class."""
  rng = np.random.default_rng(8)
  logits = (8 * np.eye(10)[np.arange(1003) // 101] + rng.normal(size=(1003, 10))).astype(np.float32)
  score = InceptionScore(1003, seed)
  for batch in np.split(logits, [7, 64, 640]):
    score.add(batch)

  shuffled = logits[np.random.RandomState(seed).permutation(1003)].astype(np.float64)
  p = np.exp(shuffled) / np.exp(shuffled).sum(axis=1, keepdims=True)
  parts = [p[1003 * k // 10 : 1003 * (k + 1) // 10] for k in range(10)]
  scores = [np.exp(np.mean(np.sum(part * np.log(part / part.mean(axis=0)), axis=1))) for part in parts]
  result = score.result()
  assert result["inception_score"] == pytest.approx(np.mean(scores), rel=1e-12) and np.mean(scores) > 8
  assert result["inception_score_std"] == pytest.approx(np.std(scores), rel=1e-9)


def test_precision_and_recall_of_identical_disjoint_and_nested_sets():
  mesh = mesh_of(8)
  points = np.random.default_rng(4).normal(size=(70, 5)).astype(np.float32)

  def scores(real, fake):
    result = precision_recall(real, fake, mesh, block=8)
    return result["precision"], result["recall"]

  assert scores(points, points) == (1.0, 1.0)
  assert scores(points, points + 100.0) == (0.0, 0.0)
  # A generator that always returns the same real image has precision 1 and almost no recall.
  assert scores(points, points[:1].repeat(50, axis=0)) == (1.0, 1 / 70)
  # Repeated images have balls of radius 0, which contain exactly their copies, however products are rounded.
  many = np.random.default_rng(6).normal(size=(61, 777)).astype(np.float32)
  repeated = np.random.default_rng(7).permutation(many.repeat(5, axis=0))
  result = precision_recall(repeated, many, mesh_of(1), block=47)
  assert (result["precision"], result["recall"]) == (1.0, 1.0)


def test_precision_and_recall_by_brute_force():
  rng = np.random.default_rng(5)
  real = (7.0 + rng.normal(size=(90, 3))).astype(np.float32)
  fake = (7.5 + 0.7 * rng.normal(size=(61, 3))).astype(np.float32)

  def fraction(reference, queries, k):
    distances = np.linalg.norm(reference[:, None] - reference[None], axis=-1)
    radii = np.sort(distances, axis=1)[:, k]
    return np.mean(np.any(np.linalg.norm(queries[:, None] - reference[None], axis=-1) <= radii[None], axis=1))

  for k in (1, 5):
    result = precision_recall(real, fake, mesh_of(8), neighbours=k, block=4)
    assert result["precision"] == pytest.approx(fraction(real, fake, k))
    assert result["recall"] == pytest.approx(fraction(fake, real, k))


def test_too_few_images_are_refused():
  one = np.zeros((1, 2), np.float32)
  with pytest.raises(UserError, match=r"FID needs at least 2 images per side, .* 1 real and 1 fake"):
    fid(Moments.of(one), Moments.of(one))
  with pytest.raises(UserError, match="KID needs at least 2 images"):
    kid(REAL, FAKE[:1])
  with pytest.raises(UserError, match="at least 4 images per side"):
    precision_recall(REAL, FAKE[:3], mesh_of(1))
  with pytest.raises(UserError, match="at least 10 images"):
    InceptionScore(9)
