"""Density, coverage and authenticity: recorded numbers, values by hand, laws; and the distances that they share."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import neighbourhoods as golden
from helpers.meshes import mesh_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from r3gan_jax.errors import UserError
from r3gan_jax.metrics import density_coverage, memorisation
from r3gan_jax.metrics.density_coverage import density_coverage as of_balls
from r3gan_jax.metrics.feature_extractor import FeatureExtractor, ImageSet
from r3gan_jax.metrics.features import pixels
from r3gan_jax.metrics.memorisation import authenticity, nearest_reals
from r3gan_jax.metrics.neighbourhoods import Neighbourhoods, neighbour_distances, rows_neighbours, rows_positions
from r3gan_jax.metrics.precision_recall import of_neighbourhoods

REAL, FAKE = golden.features()
RECORDED = json.loads(golden.GOLDEN.read_text())


@pytest.mark.parametrize("devices", [1, 8])
def test_golden_numbers(devices):
  """Counts, so equal to the last digit, on any number of devices; precision and recall as prdc has them, of 5, too."""
  sides = Neighbourhoods(REAL, FAKE, mesh_of(devices), closed=5, block=128)
  sizes = {"num_real": 1500, "num_fake": 1200}
  found = of_balls(sides)
  assert found == {
    "density": pytest.approx(RECORDED["density"], rel=1e-12),
    "coverage": RECORDED["coverage"],
    **{f"density_coverage_{name}": value for name, value in {"neighbours": 5, **sizes}.items()},
  }
  assert authenticity(sides) == {
    "authenticity": RECORDED["authenticity"],
    **{f"authenticity_{name}": value for name, value in sizes.items()},
  }
  found = of_neighbourhoods(sides)
  assert (found["precision"], found["recall"], found["neighbours"]) == (RECORDED["precision"], RECORDED["recall"], 5)


def on_a_line(*points):
  return np.array(points, np.float32)[:, None]


def test_density_and_coverage_by_hand():
  """Reals at 0, 1, 3, 7 have open balls of radius 1, 1, 2, 4 to the nearest other one."""
  real, fake = on_a_line(0, 1, 3, 7), on_a_line(0.5, 1, 2.5, 100)
  sides = Neighbourhoods(real, fake, mesh_of(1), opened=1)
  np.testing.assert_array_equal(sides.real_distances[:, 0], [1, 1, 4, 16])
  # 0.5 is in the balls of 0 and 1; 1 in that of 1, and on the boundary of those of 0 and 3; 2.5 in that of 3.
  np.testing.assert_array_equal(sides.of_fake.balls[:, 1], [2, 1, 1, 0])
  # A fake nearer than 4 to 7 is missing.
  found = of_balls(sides)
  assert (found["density"], found["coverage"]) == (1.0, 0.75)
  sides = Neighbourhoods(real, fake, mesh_of(1), opened=2)  # radii 3, 2, 3, 6
  found = of_balls(sides)
  assert (found["density"], found["coverage"]) == ((3 + 3 + 4 + 0) / 4 / 2, 1.0)


def test_authenticity_by_hand():
  """Reals at 0, 1, 3, 7 are 1, 1, 2, 4 away from the nearest other one."""
  real = on_a_line(0, 1, 3, 7)
  fake = on_a_line(7, 9, -1.5, -1, 2.5, 30)  # copy; nearer to 7 than 3 is; farther than 1; as far as 1; near; far
  sides = Neighbourhoods(real, fake, mesh_of(1))
  np.testing.assert_array_equal(sides.of_fake.nearest, [3, 3, 0, 0, 2, 3])
  assert authenticity(sides)["authenticity"] == 2 / 6


def test_samples_of_the_real_distribution():
  """Density is 1 and coverage 1 - 2^-k in expectation; on a line, 2 in 3 are their neighbours' neighbours."""
  rng = np.random.default_rng(0)
  found = of_balls(Neighbourhoods(*rng.uniform(size=(2, 2000, 4)).astype(np.float32), mesh_of(1), block=500))
  assert found["density"] == pytest.approx(1, abs=0.05)
  assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.015)
  real, fake = (rng.uniform(size=(count, 1)).astype(np.float32) for count in (500, 4000))
  assert authenticity(Neighbourhoods(real, fake, mesh_of(1)))["authenticity"] == pytest.approx(1 / 3, abs=0.03)


def test_copies_and_collapse():
  real = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)

  def scores(fake):
    sides = Neighbourhoods(real, fake, mesh_of(8), block=16)
    found = of_balls(sides)
    return found["density"], found["coverage"], authenticity(sides)["authenticity"]

  assert scores(real) == (1.0, 1.0, 0.0), "as prdc computes them"
  assert scores(real + 100) == (0.0, 0.0, 1.0)
  _, coverage, authentic = scores(real[:1].repeat(200, axis=0))
  assert coverage < 0.05 and authentic == 0
  # Copies of images that the data have many times lie in no open ball, and are not authentic either.
  real = real[:40].repeat(7, axis=0)
  assert scores(real) == (0.0, 0.0, 0.0)


def test_positions_by_brute_force():
  """Padding is nowhere, boundaries are in closed balls only, and of several nearest points one is found."""
  rng = np.random.default_rng(2)
  real, fake = rng.integers(-4, 5, (96, 3)), rng.integers(-5, 6, (41, 3))
  real[48:] = -real[:48]  # their mean is 0, so that distances are exact
  for devices, block in ((1, 1024), (8, 4)):
    arrays = (features.astype(np.float32) for features in (real, fake))
    sides = Neighbourhoods(*arrays, mesh_of(devices), closed=2, opened=4, block=block)
    for points, queries, found in ((real, fake, sides.of_fake), (fake, real, sides.of_real)):
      among = ((points[:, None] - points[None]) ** 2).sum(axis=-1) + np.diag(np.full(len(points), 10**6))
      among.sort(axis=1)
      distances = ((queries[:, None] - points[None]) ** 2).sum(axis=-1)
      np.testing.assert_array_equal(found.distances, distances.min(axis=1))
      np.testing.assert_array_equal(distances[np.arange(len(queries)), found.nearest], distances.min(axis=1))
      np.testing.assert_array_equal(found.balls[:, 0], (distances <= among[None, :, 1]).sum(axis=1))
      if queries is fake:
        np.testing.assert_array_equal(found.balls[:, 1], (distances < among[None, :, 3]).sum(axis=1))
        np.testing.assert_array_equal(sides.real_distances, among[:, :5])


def test_distances_that_are_given_are_used():
  mesh = mesh_of(1)
  distances = neighbour_distances(REAL, mesh)
  expected = Neighbourhoods(REAL, FAKE, mesh)
  np.testing.assert_array_equal(expected.real_distances, distances)
  given = Neighbourhoods(REAL, FAKE, mesh, distances)
  assert of_balls(given) == of_balls(expected)
  halved = Neighbourhoods(REAL, FAKE, mesh, distances / 4)
  assert of_balls(halved)["density"] < of_balls(expected)["density"]
  assert authenticity(halved)["authenticity"] > authenticity(expected)["authenticity"]
  few = neighbour_distances(REAL[:3], mesh)
  assert np.isfinite(few[:, :2]).all() and np.isinf(few[:, 2:]).all()


def test_distances_of_20k_by_20k_take_less_than_1_gib():
  mesh = mesh_of(1)
  sharding = NamedSharding(mesh, P(*mesh.axis_names))
  features = jax.ShapeDtypeStruct((20 * 1024, 2048), jnp.float32, sharding=sharding)
  radii, count = jax.ShapeDtypeStruct((20 * 1024, 2), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
  programs = (
    rows_neighbours.lower(features, count, mesh=mesh, neighbours=5, block=1024),
    rows_positions.lower(features, features, count, radii, mesh=mesh, block=1024),
  )
  for sets, program in enumerate(programs, start=1):
    memory = program.compile().memory_analysis()
    assert memory.argument_size_in_bytes == pytest.approx(sets * 4 * 20 * 1024 * 2048, rel=1e-3)
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 2**30


def test_too_few_images_are_refused():
  with pytest.raises(UserError, match=r"density and coverage need at least 6 real images .* have 5"):
    density_coverage.check_sizes(5, 1)
  with pytest.raises(UserError, match="authenticity needs at least 2 real images, but has 1"):
    memorisation.check_sizes(1, 1)
  density_coverage.check_sizes(6, 1)
  memorisation.check_sizes(2, 1)


def test_the_nearest_reals_of_samples():
  """Among all, in batches that they do not fill; with copies, and reals that are equal."""
  rng = np.random.default_rng(3)
  real = rng.integers(0, 256, (77, 2, 2, 1), np.uint8)
  real[50] = real[8]
  fake = rng.integers(0, 256, (9, 2, 2, 1), np.uint8)
  fake[0], fake[1] = real[30], real[50]
  extract = FeatureExtractor(pixels(), mesh_of(8), 3)
  sets = (ImageSet("x", len(images), images.shape[1:], images.__getitem__) for images in (fake, real))
  found = nearest_reals(extract, *sets, count=4)

  vectors = [images.reshape(len(images), -1) / 255 for images in (fake, real)]
  to_reals = np.linalg.norm(vectors[0][:, None] - vectors[1][None], axis=-1)
  among = np.linalg.norm(vectors[1][:, None] - vectors[1][None], axis=-1)
  np.fill_diagonal(among, np.inf)
  assert found.indices.shape == (9, 4) and found.indices[0, 0] == 30 and set(found.indices[1, :2]) == {8, 50}
  np.testing.assert_allclose(np.sort(to_reals, axis=1)[:, :4], found.distances, atol=2e-3)
  np.testing.assert_allclose(np.take_along_axis(to_reals, found.indices, 1), found.distances, atol=2e-3)
  np.testing.assert_allclose(found.own, among.min(axis=1)[found.indices[:, 0]], atol=2e-3)
  flat = [vector.astype(np.float32) for vector in vectors]
  assert found.authenticity == golden.authenticity(flat[1], flat[0])
  with pytest.raises(UserError, match="the 77 nearest of 77 real images"):
    sets = (ImageSet("x", len(images), images.shape[1:], images.__getitem__) for images in (fake, real))
    nearest_reals(extract, *sets, count=77)
