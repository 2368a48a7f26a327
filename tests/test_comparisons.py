"""The comparisons of configs/comparisons/: every entry can be trained, at any length and rate."""

import importlib

import jax
import numpy as np
import pytest

from r3gan_jax import factory, trials

COMPARISONS = {
  ("losses", "stacked_digits"): 8,
  ("losses", "stacked_mnist"): 8,
  ("recall", "stacked_digits"): 13,
  ("recall", "fashion_mnist"): 13,
  ("roadmap", ""): 8,
  ("zoo", "stacked_digits"): 22,
  ("zoo", "fashion_mnist"): 25,
  ("zoo", "stacked_mnist"): 20,
  ("zoo", "label_noise"): 20,
}

# The 8x8 forms: parameters of each network
SMALL = {
  "sngan": {"generator": 146_691, "discriminator": 186_753},
  "progan_fixed": {"generator": 176_774, "discriminator": 177_537},
  "gan": {"generator": 131_776, "discriminator": 82_625},
  "dcgan": {"generator": 168_064, "discriminator": 134_912},
  "wgan_gp": {"generator": 168_064, "discriminator": 134_849},  # biases instead of batch norm
  "lapgan": {
    **{"generator_4": 103_984, "discriminator_4": 22_913},
    # 7x7 and 5x5 kernels in G; 3x3 in D, whose last layer sees 2x2
    **{"generator_8": 49 * 4 * 32 + 32 + 49 * 32 * 32 + 32 + 25 * 32 * 3 + 3},
    **{"discriminator_8": 9 * 3 * 32 + 32 + 9 * 32 * 32 + 32 + 4 * 32 + 1},
  },
}


def comparison(name, variant):
  return importlib.import_module(f"configs.comparisons.{name}").get_config(variant)


@pytest.mark.parametrize("name, variant", COMPARISONS)
def test_every_entry_can_be_trained(name, variant):
  config = comparison(name, variant)
  assert len(config.order) == len(config.entries) == COMPARISONS[name, variant]
  data = []
  for entry in config.order:
    trials.Trial(config, entry, 0, 1.0).check()
    assert config.entries[entry].control in ("", *config.order) and config.entries[entry].control != entry
    kept = config.entries[entry].config.data.to_dict()
    data.append({kind: kept[kind] for kind in ("source", "name", "resolution", "channels", "x_flip", "fit")})
  assert all(each == data[0] for each in data), "all have the same data"


def test_label_noise():
  """The labels of an entry are as noisy as its name says; what it assumes of them is its own."""
  config = comparison("zoo", "label_noise")
  for name, form, noise, assumed, control in (
    ("rac_gan_0", "ac", 0.0, 0.0, ""),
    ("rac_gan_naive_50", "ac", 0.5, 0.0, ""),
    ("rac_gan_less_70", "ac", 0.7, 0.5, "rac_gan_naive_70"),
    ("rcgan_known_30", "c", 0.3, 0.3, "rcgan_naive_30"),
  ):
    entry = config.entries[name]
    gan = entry.config.gan
    assert (gan.form, entry.config.data.label_noise, gan.label_noise) == (form, noise, assumed), name
    assert entry.control == control


@pytest.mark.parametrize("name", SMALL)
def test_forms_for_8x8(name):
  config = comparison("zoo", "stacked_digits").entries[name].config
  params, _ = jax.eval_shape(factory.build_algorithm(config).init, jax.random.key(0))
  assert {network: sum(leaf.size for leaf in jax.tree.leaves(params[network])) for network in params} == SMALL[name]


def test_rates_and_lengths():
  config = comparison("zoo", "fashion_mnist")
  trial = trials.Trial(config, "infogan", 3, 0.5)
  assert trial.name == "seed_3_rate_0.5" and trial.config.seed == 3
  assert trial.config.gan.generator_learning_rate == 5e-4 and trial.config.gan.discriminator_learning_rate == 1e-4
  assert trials.Trial(config, "r3gan", 0, 2.0).config.gan.learning_rate == (2e-3, 4e-4)
  assert trials.Trial(config, "r3gan", 0, 1.0).name == "seed_0"

  short = trials.Trial(config, "began", 0, 1.0).config
  longer = trials.of_length(short, 2 * short.run.total_images)
  for name in ("hold_images", "decay_images", "ema_half_life"):
    assert np.all(np.asarray(longer.gan[name]) == 2 * np.asarray(short.gan[name])), name
  assert longer.gan.learning_rate == short.gan.learning_rate and longer.run.snapshot_every_images == 6_000
  factory.build_experiment(longer, 1)
