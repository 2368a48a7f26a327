"""Runs that train on noisy or missing labels."""

import dataclasses

import numpy as np
import pytest

from configs import common, stacked_digits
from r3gan_jax import factory, runs, scoring
from r3gan_jax.algorithms.capabilities import LearnsFromUnlabelled
from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.errors import UserError

SHIFTED = tuple((label, (label + 1) % 5) for label in range(5))


def recipe(**data):
  """Conditional, at 8x8, on 256 generated images."""
  config = stacked_digits.get_config("smoke")
  config.gan.widths = (8, 8)
  config.data.update({"num_classes": 5} | data)
  return config


def test_training_sees_noisy_labels_and_evaluation_clean_ones(tmp_path, monkeypatch):
  """With every label redrawn as the next class; and the run is resumed with the same labels only."""
  config = recipe(label_noise=1.0, label_noise_pairs=SHIFTED, x_flip=True)
  config.run.metrics = ("fid",)
  clean = factory.build_source(config)
  trained_on, drawn, scored_by = [], [], []

  class Recording(scoring.Sampler):
    def __call__(self, params, carry, seeds, labels, *rest):
      drawn.append(labels)
      return super().__call__(params, carry, seeds, labels, *rest)

  class Scorer:
    def __init__(self, config, algorithm, source, title):
      scored_by.append(source[np.arange(256)]["label"])
      self.protocol = {}
      self._draw = scoring.fake_images(algorithm, source, 40, seed=0)

    def __call__(self, params, carry):
      assert self._draw(params, carry).images(np.arange(40)).shape == (40, 8, 8, 3)
      return []

  def build_loader(config, source):
    loader = build(config, source)
    examples = loader.examples

    def record(samples, order=0):
      read = examples(samples, order)
      trained_on.append((loader.indices(samples, order) % 256, read["label"]))
      return read

    loader.examples = record
    return loader

  build = factory.build_loader
  monkeypatch.setattr(factory, "build_loader", build_loader)
  monkeypatch.setattr(scoring, "Sampler", Recording)
  monkeypatch.setattr(runs, "Scorer", Scorer)
  for config.run.total_images in (32, 64):
    runs.train_run(config, tmp_path / "run")
  labels = clean[np.arange(256)]["label"]
  indices, noisy = (np.concatenate(part) for part in zip(*trained_on, strict=True))
  assert len(indices) >= 128
  np.testing.assert_array_equal(noisy, (labels[indices] + 1) % 5)
  np.testing.assert_array_equal(scored_by[0], labels)
  of_scores = [part for part in drawn if len(part) == 40]
  assert of_scores
  for part in of_scores:
    np.testing.assert_array_equal(part, labels[np.random.default_rng(0).integers(256, size=40)])
  config.data.label_noise = 0.5
  with pytest.raises(UserError, match=r"was made with config.data.label_noise = 1.0, but now it is 0.5"):
    runs.train_run(config, tmp_path / "run")


def test_evaluation_of_a_work_directory_has_clean_labels():
  noisy, clean = (factory.build_source(recipe(label_noise=noise))[np.arange(256)]["label"] for noise in (1.0, 0.0))
  np.testing.assert_array_equal(noisy, clean)


def test_seeds_share_the_labels_and_clean_runs_read_the_source_itself():
  def labels(seed):
    config = recipe(label_noise=0.5)
    config.seed = seed
    return factory.build_loader(config, factory.build_source(config)).source[np.arange(256)]["label"]

  np.testing.assert_array_equal(labels(0), labels(1))
  source = factory.build_source(recipe())
  assert factory.build_loader(recipe(), source).source is source
  assert (labels(0) != source[np.arange(256)]["label"]).any()


def test_images_without_a_label_are_for_those_that_learn_from_them(monkeypatch):
  config = recipe(labelled_images=20)
  with pytest.raises(UserError, match=r"config.data.labelled_images = 20: r3gan cannot learn"):
    factory.build_experiment(config, 1)

  class SemiSupervised(R3GAN, LearnsFromUnlabelled):
    pass

  algorithm = factory.build_algorithm(config)
  values = {field.name: getattr(algorithm, field.name) for field in dataclasses.fields(algorithm) if field.init}
  monkeypatch.setattr(factory, "build_algorithm", lambda config, platform: SemiSupervised(**values))
  assert isinstance(factory.build_experiment(config, 1).algorithm, SemiSupervised)
  labels = factory.build_loader(config, factory.build_source(config)).examples(np.arange(256))["label"]
  assert np.bincount(labels + 1).tolist() == [236, 4, 4, 4, 4, 4]


def test_smoke_runs_label_no_more_images_than_there_are():
  config = recipe(labelled_images=4000)
  common.make_smoke(config)
  assert config.data.labelled_images == 5
  labels = factory.build_loader(config, factory.build_source(config)).examples(np.arange(256))["label"]
  assert np.bincount(labels + 1).tolist() == [251, 1, 1, 1, 1, 1]
