"""Directions, on recorded networks of R3GAN and on small ones of StyleGAN2."""

import importlib

import jax
import numpy as np
import pytest
from helpers import golden_cases

from configs import roadmap
from r3gan_jax import editing, factory
from r3gan_jax.editing import Direction, Editor, Latents
from r3gan_jax.errors import UserError
from r3gan_jax.inversion import FineTuned

SEEDS = np.arange(5)


class Setting:
  """A recorded R3GAN with 5 classes, and latents of it."""

  def __init__(self):
    case = golden_cases.load("cond_8px")
    self.algorithm, self.params = case.algorithm, {"generator": case.params("G", "generator")}
    self.editor = Editor(self.algorithm, self.params, {})
    self.latents = self.editor.latents(SEEDS, SEEDS.astype(np.int32))

  @property
  def linear_map(self):
    """From the parameters: each channel of the constant times a row of the kernel that is z's, not the embedding's."""
    basis = jax.tree.map(np.asarray, self.params["generator"]["basis"])
    kernel = basis["linear"]["kernel"][: self.algorithm.noise_dim]
    return (basis["constant"][None] * kernel[:, None, None, :]).reshape(len(kernel), -1)


@pytest.fixture(scope="module")
def setting():
  return Setting()


def unit(dim, seed):
  vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
  return vector / np.linalg.norm(vector)


def test_the_closed_form_is_that_of_the_weights(setting):
  """By the eigenvectors of A^T A, as SeFa has it; no row of the class embedding is in them."""
  np.testing.assert_allclose(setting.editor.first_linear_map(), setting.linear_map, atol=1e-5)
  found = editing.closed_form(setting.editor, setting.latents, 4)
  np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-5)
  _, vectors = np.linalg.eigh(setting.linear_map.astype(np.float64) @ setting.linear_map.T.astype(np.float64))
  np.testing.assert_allclose(np.abs(np.sum(found * vectors.T[::-1][:4], axis=1)), 1, atol=1e-4)
  assert (np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_a_step_in_noise_is_a_step_in_features(setting):
  """Its image under the linear map, for every class."""
  vector, fine_tuned = unit(setting.algorithm.noise_dim, 0), FineTuned(setting.algorithm, setting.params, {})
  labels, noise = setting.latents.labels, setting.latents.noise
  moved = [
    setting.editor.moved(setting.latents, Direction(*parts, {}), 2.0)
    for parts in (("noise", vector), ("features", vector @ setting.linear_map))
  ]
  for latents in moved:
    expected = setting.editor.features(setting.latents) + 2 * vector @ setting.linear_map
    np.testing.assert_allclose(setting.editor.features(latents), expected, atol=1e-5)
  by_noise = jax.jit(setting.algorithm.generate)(setting.params, {}, moved[0].noise, labels)
  rows = np.concatenate([noise, moved[1].offsets], axis=1)
  by_features = jax.jit(fine_tuned.generate)(setting.params, {}, rows, labels)
  np.testing.assert_allclose(by_noise, by_features, atol=1e-5 * np.abs(by_noise).max())
  assert np.abs(by_noise - jax.jit(setting.algorithm.generate)(setting.params, {}, noise, labels)).max() > 1e-2


def test_strength_0_changes_nothing(setting):
  """Bit for bit, with offsets and without."""
  offset = unit(len(setting.linear_map.T), 1)
  tuned = Latents(setting.latents.noise, np.tile(offset, (len(SEEDS), 1)), setting.latents.labels)
  for latents in (setting.latents, tuned):
    before = setting.editor.draw(latents)
    for space, dim in (("noise", setting.algorithm.noise_dim), ("features", len(offset))):
      direction = Direction(space, 10 * unit(dim, 2), {})
      drawn = [setting.editor.draw(setting.editor.moved(latents, direction, strength)) for strength in (0.0, 1.0)]
      np.testing.assert_array_equal(drawn[0], before)
      assert (drawn[1] != before).any()


def test_principal_components_of_a_planted_plane():
  random = np.random.default_rng(0)
  axes = np.linalg.qr(random.standard_normal((20, 2)))[0].T
  values = random.standard_normal((500, 2)) * [3, 2] @ axes + 5 + 0.01 * random.standard_normal((500, 20))
  found = editing.principal_components(values, 2)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), [3, 2], rtol=0.1)
  np.testing.assert_allclose(np.linalg.norm(found @ axes.T, axis=1), np.linalg.norm(found, axis=1), rtol=1e-4)
  np.testing.assert_allclose(
    np.std(values @ (found[0] / np.linalg.norm(found[0]))), np.linalg.norm(found[0]), rtol=0.01
  )


def test_without_classes_pca_is_the_closed_form(setting):
  """The covariance of A z is A A^T: the same space, and the singular values as lengths; of one class only."""
  latents = setting.editor.latents(np.arange(512), np.full(512, 2, np.int32))
  found = editing.principal_components(setting.editor.features(latents), setting.algorithm.noise_dim)
  lengths = np.linalg.svd(setting.linear_map, compute_uv=False)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths, rtol=0.35)
  within, *_ = np.linalg.lstsq(setting.linear_map.T, found[:3].T)
  np.testing.assert_allclose(setting.linear_map.T @ within, found[:3].T, atol=1e-3 * lengths[0])


def test_the_plane_between_planted_classes():
  random = np.random.default_rng(0)
  values, normal = 2 * random.standard_normal((2000, 10)), unit(10, 3)
  # One in 27, which a plain fit would neglect.
  positive = values @ normal + random.standard_normal(2000) > 4
  vector, accuracy = editing.boundary(values, positive)
  assert vector @ normal / np.linalg.norm(vector) > 0.97 and accuracy > 0.87
  assert np.linalg.norm(vector) == pytest.approx(2, rel=0.1)
  assert 0.3 < editing.boundary(values, random.permutation(positive))[1] < 0.7
  with pytest.raises(UserError, match=r"3 of 2,000 samples .* raise --samples"):
    editing.boundary(values, np.arange(2000) < 3)


def test_likeness():
  a, b = np.array([[1.0, 0], [3, 4], [0, 0]]), np.array([[0.0, 2], [6, 8], [1, 1]])
  np.testing.assert_allclose(editing.likeness(a, b), [0, 1, 0])


def test_random_directions_are_as_long_and_in_the_same_space(setting):
  like = Direction("features", 3 * unit(len(setting.linear_map.T), 4), {})
  found = [setting.editor.random_direction(like, seed).vector for seed in (0, 0, 1)]
  np.testing.assert_array_equal(found[0], found[1])
  assert np.linalg.norm(found, axis=1) == pytest.approx(3, rel=1e-5)
  assert abs(found[0] @ found[2]) < 0.9 * 9
  noise = setting.editor.random_direction(Direction("noise", np.eye(len(setting.linear_map))[0], {}), 0).vector
  assert np.linalg.norm(noise) == pytest.approx(1, rel=1e-5) and noise.shape == (len(setting.linear_map),)


def test_what_is_written_is_read(setting, tmp_path):
  direction = Direction("noise", unit(setting.algorithm.noise_dim, 5), {"method": "pca", "images_seen": 7})
  editing.write_direction(tmp_path / "a.npz", direction)
  found = editing.read_direction(tmp_path / "a.npz", setting.editor)
  np.testing.assert_array_equal(found.vector, direction.vector)
  assert (found.space, found.facts) == (direction.space, direction.facts)


def test_files_that_are_no_direction_of_this_run(setting, tmp_path):
  for name, space, dim in (("short", "noise", 3), ("wide", "features", 7), ("odd", "colours", 3)):
    editing.write_direction(tmp_path / f"{name}.npz", Direction(space, unit(dim, 6), {}))
  (tmp_path / "text.npz").write_text("no direction")
  np.savez(tmp_path / "other.npz", noise=np.zeros(3))
  messages = {
    "short": f"a direction of 3 numbers in noise, but this run has {setting.algorithm.noise_dim}: it was found for an",
    "wide": "a direction of 7 numbers in features, but this run has ",
    "odd": "a direction in 'colours'",
    "text": "text.npz cannot be read",
    "other": "other.npz has no 'space': make one with --find",
    "none": "there is no direction .*none.npz: choose from odd, other, short, text, wide",
  }
  for name, message in messages.items():
    with pytest.raises(UserError, match=message):
      editing.read_direction(tmp_path / f"{name}.npz", setting.editor)


def test_latents_of_another_run(setting, tmp_path):
  """Other lengths of noise or offsets, or no classes; those of this run are read as they are."""
  noise, labels = setting.latents.noise, setting.latents.labels
  offsets = np.ones((len(SEEDS), setting.linear_map.shape[1]), np.float32)
  files = {
    "own": {"noise": noise, "offsets": offsets, "labels": labels},
    "noise": {"noise": noise[:, 1:], "offsets": offsets, "labels": labels},
    "offsets": {"noise": noise, "offsets": offsets[:, 1:], "labels": labels},
    "labels": {"noise": noise, "offsets": offsets},
  }
  for name, arrays in files.items():
    np.savez(tmp_path / f"{name}.npz", **arrays)
  found = editing.read_latents(tmp_path / "own.npz", setting.editor)
  np.testing.assert_array_equal(found.offsets, offsets)
  np.testing.assert_array_equal(found.labels, labels)
  for name in ("noise", "offsets", "labels"):
    with pytest.raises(UserError, match=f"{name}.npz is of another run: invert the images with this one"):
      editing.read_latents(tmp_path / f"{name}.npz", setting.editor)


@pytest.fixture(scope="module")
def styled():
  """(algorithm, params, editor, latents) of untrained networks."""
  algorithm = factory.build_algorithm(roadmap.get_config("a_smoke"))
  params, carry = jax.jit(lambda: algorithm.init(jax.random.key(0)))()
  editor = Editor(algorithm, params, carry)
  return algorithm, params, editor, editor.latents(np.arange(200), None)


def test_the_closed_form_of_stylegan2_is_that_of_its_styles(styled):
  """SeFa: the eigenvectors of the sum of A^T A over layers; as long as the standard deviation of w."""
  algorithm, params, editor, latents = styled
  layers, width = editor.feature_shape
  found = editing.closed_form(editor, latents, 3).reshape(3, layers, width)
  np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))
  total = 0
  for stage, parts in params["generator"]["synthesis"].items():
    if stage.startswith("stage"):
      kernel = np.asarray(parts["conv"]["style"]["kernel"], np.float64)
      total += kernel @ kernel.T
  vectors = np.linalg.eigh(total)[1].T[::-1]
  w = np.asarray(algorithm.mapping.apply({"params": params["generator"]["mapping"]}, latents.noise))
  for step, vector in zip(found[:, 0], vectors, strict=False):
    length = np.std(w @ vector.astype(np.float32))
    assert abs(step @ vector) == pytest.approx(length, rel=1e-3)
    assert np.linalg.norm(step) == pytest.approx(length, rel=1e-3)


def test_only_some_layers_of_stylegan2(styled):
  """Their w and no other moves, and the images are those of the synthesis network at this w."""
  algorithm, params, editor, latents = styled
  layers, width = editor.feature_shape
  few = Latents(latents.noise[:3], latents.offsets[:3], None)
  direction = Direction("features", np.tile(unit(width, 7), layers), {})
  moved = editor.moved(few, editor.only_layers(direction, np.array([1, 2])), 3.0)
  w = editor.features(few).reshape(3, layers, width)
  w[:, 1:3] += 3 * unit(width, 7)
  np.testing.assert_allclose(editor.features(moved).reshape(w.shape), w, atol=1e-6)
  expected = jax.jit(algorithm.synthesis.apply)({"params": params["generator"]["synthesis"]}, w)
  drawn = editor.draw(moved).astype(float) / 127.5 - 1
  np.testing.assert_allclose(drawn, np.clip(expected, -1, 1), atol=1 / 127)
  assert np.abs(editor.draw(few).astype(float) / 127.5 - 1 - drawn).max() > 2 / 127


def test_noise_stays_in_its_box():
  """The zoo's first GAN draws from a cube, and has no features to move."""
  algorithm = factory.build_algorithm(importlib.import_module("configs.zoo.gan").get_config("smoke"))
  editor = Editor(algorithm, *jax.jit(lambda: algorithm.init(jax.random.key(0)))())
  latents = editor.latents(SEEDS, None)
  direction = Direction("noise", np.ones(editor.noise_dim, np.float32), {})
  np.testing.assert_array_equal(
    editor.moved(latents, direction, 0.5).noise, np.minimum(latents.noise + 0.5, np.float32(3**0.5))
  )
  with pytest.raises(UserError, match="AdversarialNets has no features at 4x4, and no w"):
    editor.feature_shape  # noqa: B018
