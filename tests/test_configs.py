"""Recipes, against the numbers of the papers and the official code."""

import importlib
import re

import jax
import pytest

from benchmarks.iteration import PRESETS as PRESETS_TO_COMPILE
from configs import roadmap
from r3gan_jax import factory
from r3gan_jax.errors import UserError
from r3gan_jax.planning.topology import parse_topology
from r3gan_jax.training.workdir import flatten

NETWORK_SHAPE = ("network", "widths", "cardinalities", "blocks", "expansion")

# preset, variant: G and D parameters in millions, batch, images, burn-in, gamma, half-life, augmentation, x-flip
PRESETS = {
  ("stacked_mnist", ""): (20.73, 20.68, 512, 10e6, 2e6, (1, 0.1), 0.5e6, 0, False),
  ("cifar10", ""): (20.78, 21.28, 512, 250e6, 20e6, (0.05, 0.005), 5e6, 0.55, True),
  ("cifar10", "unconditional"): (20.73, 20.68, 512, 250e6, 20e6, (0.05, 0.005), 5e6, 0.55, True),
  ("ffhq64", ""): (22.43, 22.38, 256, 100e6, 20e6, (2, 0.2), 0.5e6, 0.3, True),
  ("ffhq256", ""): (23.06, 23.01, 256, 200e6, 20e6, (150, 15), 0.5e6, 0.3, True),
  ("imagenet32", ""): (82.91, 86.55, 4096, 1000e6, 200e6, (0.5, 0.05), 50e6, 0.5, True),
  ("imagenet64", ""): (103.57, 107.21, 4096, 1000e6, 200e6, (1, 0.1), 50e6, 0.4, True),
}

# the same of recipes on latents, which are not the paper's
LATENTS = {
  ("imagenet256", ""): (82.92, 86.55, 4096, 1000e6, 200e6, (0.5, 0.05), 50e6, 0.5, True),
  ("imagenet256", "wide"): (316.76, 328.81, 4096, 1000e6, 200e6, (0.5, 0.05), 50e6, 0.5, True),
  ("imagenet512", ""): (103.57, 107.21, 4096, 1000e6, 200e6, (1, 0.1), 50e6, 0.4, True),
}

# configuration: published FID and parameters of G and D ([P] Table 2), exact parameters, loss, penalties
ROADMAP = {
  "b": (12.46, "18.890", "23.996", 18_890_453, 23_996_481, "non_saturating", ("r1",)),
  "c1": (11.77, "18.890", "23.996", 18_890_453, 23_996_481, "relativistic", ("r1",)),
  "c2": (11.65, "18.890", "23.996", 18_890_453, 23_996_481, "relativistic", ("r1", "r2")),
  "d1": (10.17, "23.400", "23.282", 23_400_192, 23_281_536, "relativistic", ("r1", "r2")),
  "d2": (9.95, "23.378", "23.282", 23_378_304, 23_281_536, "relativistic", ("r1", "r2")),
  "e1": (7.507, "23.188", "23.091", 23_187_648, 23_090_880, "relativistic", ("r1", "r2")),
  "e2": (7.045, "23.058", "23.010", 23_057_952, 23_009_568, "relativistic", ("r1", "r2")),
}


# recipe of the zoo, variant: parameters of each network
ZOO = {
  ("acgan", ""): {"generator": 1_115_520, "discriminator": 702_218},
  ("acgan", "cifar10"): {"generator": 1_117_568, "discriminator": 704_266},
  ("acgan", "paper"): {"generator": 2_993_763, "discriminator": 1_663_867},
  ("autogan", ""): {"generator": 375_169, "discriminator": 263_488},
  ("autogan", "cifar10"): {"generator": 376_323, "discriminator": 264_768},
  ("autogan", "paper"): {"generator": 4_405_251, "discriminator": 1_053_824},
  ("began", ""): {"generator": 123_361, "discriminator": 578_849},
  ("began", "cifar10"): {"generator": 123_939, "discriminator": 580_003},
  ("bigan", ""): {"generator": 1_953_792, "encoder": 1_902_592, "discriminator": 1_903_616},
  ("biggan", ""): {"generator": 301_634, "discriminator": 269_250},
  ("biggan", "cifar10"): {"generator": 302_788, "discriminator": 270_530},
  ("biggan", "paper"): {"generator": 70_433_988, "discriminator": 87_982_370},
  ("cgan", ""): {"generator": 2_413_984, "discriminator": 1_224_351},
  ("dcgan", ""): {"generator": 1_074_560, "discriminator": 661_248},
  ("dcgan", "paper"): {"generator": 18_885_760, "discriminator": 17_232_768},
  ("ebgan", ""): {"generator": 1_074_560, "discriminator": 1_314_561},
  ("ebgan", "paper"): {"generator": 12_689_152, "discriminator": 1_318_659},
  ("gan", ""): {"generator": 2_503_984, "discriminator": 1_231_441},
  ("infogan", ""): {"generator": 6_652_481, "discriminator": 6_692_173},
  ("lapgan", ""): {
    **{"generator_8": 1_639_264, "generator_16": 208_705, "generator_32": 208_705},
    **{"discriminator_8": 400_201, "discriminator_16": 105_153, "discriminator_32": 113_345},
  },
  ("lapgan", "cifar10"): {
    **{"generator_8": 1_792_992, "generator_16": 218_179, "generator_32": 218_179},
    **{"discriminator_8": 477_001, "discriminator_16": 108_353, "discriminator_32": 116_545},
  },
  ("msggan", ""): {"generator": 278_180, "discriminator": 281_857},
  ("msggan", "cifar10"): {"generator": 278_636, "discriminator": 285_377},
  ("progan", ""): {"generator": 278_180, "discriminator": 279_073},
  ("progan", "fixed"): {"generator": 278_180, "discriminator": 279_073},
  ("progan", "paper"): {"generator": 1_296_908, "discriminator": 1_298_689},
  ("rgan", ""): {"generator": 374_529, "discriminator": 264_139},
  ("rgan", "projection"): {"generator": 374_529, "discriminator": 264_128},
  ("rgan", "asymmetric"): {"generator": 375_683, "discriminator": 265_419},
  ("sagan", ""): {"generator": 379_650, "discriminator": 269_250},
  ("sagan", "plain"): {"generator": 374_529, "discriminator": 264_129},
  ("sagan", "sngan"): {"generator": 374_529, "discriminator": 264_129},
  ("sagan", "cifar10"): {"generator": 380_804, "discriminator": 270_530},
  ("sgan", ""): {"generator": 1_074_560, "discriminator": 698_122},
  ("sgan", "without_generator"): {"generator": 1_074_560, "discriminator": 698_122},
  ("stylegan", ""): {"generator": 305_441, "discriminator": 278_689},
  ("stylegan", "paper"): {"generator": 26_219_627, "discriminator": 23_087_249},  # as published
  ("wgan_gp", ""): {"generator": 1_189_248, "discriminator": 660_929},
  ("ylg", ""): {"generator": 379_650, "discriminator": 269_250},
  ("ylg", "cifar10"): {"generator": 380_804, "discriminator": 270_530},
}


def recipe(name, variant=""):
  """Returns a recipe of configs/; "roadmap.NAME" is a configuration of the roadmap."""
  name, _, configuration = name.partition(".") if name.startswith("roadmap.") else (name, "", "")
  variant = "_".join(filter(None, (configuration, variant)))
  return importlib.import_module(f"configs.{name}").get_config(variant)


def parameter_counts(config):
  params, _ = jax.eval_shape(lambda: factory.build_algorithm(config).init(jax.random.key(0)))
  return tuple(sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in ("generator", "discriminator"))


@pytest.mark.parametrize("name, variant", [*PRESETS, *LATENTS])
def test_presets(name, variant):
  config = recipe(name, variant)
  generator, discriminator, batch, total, burn_in, gamma, half_life, augment_p, x_flip = (PRESETS | LATENTS)[
    name, variant
  ]
  assert tuple(round(count / 1e6, 2) for count in parameter_counts(config)) == (generator, discriminator)
  assert (config.batch_size, config.run.total_images, config.gan.burn_in_images) == (batch, total, burn_in)
  assert (
    config.gan.gamma == gamma and config.gan.ema_half_life == (0, half_life) and config.gan.augment_p == (0, augment_p)
  )
  assert config.gan.learning_rate == ((2e-4, 2e-4) if name == "stacked_mnist" else (2e-4, 5e-5))
  assert config.gan.beta2 == (0.9, 0.99) and config.data.x_flip == x_flip
  network = config.gan
  assert set(network.blocks) == {2} and network.expansion == 2 and network.noise_dim == 64
  assert network.bfloat16_stages == (3 if config.data.resolution == 32 else 4)
  experiment = factory.build_experiment(config, device_count=8)
  assert experiment.batch_sizes == (batch, batch) and experiment.images_per_iteration == batch


@pytest.mark.parametrize("name, variant", ZOO)
def test_the_zoo(name, variant):
  algorithm = factory.build_experiment(recipe(f"zoo.{name}", variant), device_count=1).algorithm
  params, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
  counts = {network: sum(leaf.size for leaf in jax.tree.leaves(params[network])) for network in params}
  assert counts == ZOO[name, variant]
  assert recipe(f"zoo.{name}", "smoke").name == f"zoo_{name}_smoke"


def test_configuration_a():
  """Parameters are as published, and every variant can be built."""
  for variant in ("", "smoke", "fashion32"):
    config = recipe("roadmap.a", variant)
    algorithm = factory.build_experiment(config, device_count=1).algorithm
    params, carry = jax.eval_shape(lambda algorithm=algorithm: algorithm.init(jax.random.key(0)))
    assert carry["w"].shape == (config.gan.noise_dim,)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in ("generator", "discriminator")]
    if not variant:
      assert [f"{count / 1e6:.3f}" for count in counts] == ["24.767", "24.001"]


@pytest.mark.parametrize("name, variant", [*PRESETS, *LATENTS])
def test_presets_recommend_a_slice(name, variant):
  assert (name, variant) in LATENTS or f"configs/{name}.py:{variant}".strip(":") in PRESETS_TO_COMPILE
  config = recipe(name, variant)
  assert config.batch_size % parse_topology(config.run.tpu_topology).size == 0


@pytest.mark.parametrize("variant", ["", "z", "fashion32"])
def test_the_roadmap_needs_a_configuration(variant):
  with pytest.raises(UserError, match=r"choose from a, b, c1, c2, d1, d2, e1, e2, e\.g\. configs/roadmap\.py:b"):
    roadmap.get_config(variant)
  with pytest.raises(UserError, match=r"no variant 'z': choose from \['fashion32', 'smoke'\]"):
    roadmap.get_config("b_z")


@pytest.mark.parametrize("name", ROADMAP)
def test_roadmap(name):
  config = recipe(f"roadmap.{name}")
  fid, *published, generator, discriminator, loss, penalties = ROADMAP[name]
  counts = parameter_counts(config)
  assert counts == (generator, discriminator) and [f"{count / 1e6:.3f}" for count in counts] == published
  assert (config.gan.loss, config.gan.penalties) == (loss, penalties)
  assert (config.name, config.run.total_images) == (f"roadmap_{name}", 5_000_000)
  row = re.search(rf"^ +{name} .* (\S+) +{generator:,} / {discriminator:,}$", roadmap.__doc__, re.MULTILINE)
  assert row and float(row[1]) == pytest.approx(fid)


@pytest.mark.parametrize("variant", ["", "fashion32"])
def test_the_roadmap_changes_only_network_and_loss(variant):
  """Networks, loss and penalties; b, c1 and c2 have the same network."""
  changing = {"name", "gan.loss", "gan.penalties", *(f"gan.{n}" for n in NETWORK_SHAPE)}
  reference = flatten(recipe("roadmap.e2", variant).to_dict())
  for name in ROADMAP:
    settings = flatten(recipe(f"roadmap.{name}", variant).to_dict())
    assert {n for n, value in settings.items() if value != reference[n]} <= changing
  shape = [{n: recipe(f"roadmap.{name}", variant).gan[n] for n in NETWORK_SHAPE} for name in ("b", "c1", "c2")]
  assert shape[0] == shape[1] == shape[2]


def test_the_roadmap_at_32_pixels_is_narrowed_by_one_rule():
  """Groups keep 16 channels, the size that the CPU kernel needs."""
  for name in ROADMAP:
    full, small = recipe(f"roadmap.{name}").gan, recipe(f"roadmap.{name}", "fashion32").gan
    assert small.widths[0] * 8 == full.widths[0] and small.widths[0] == small.widths[1] == 2 * small.widths[3]
    for network in (full, small) if full.cardinalities[0] > 1 else ():
      groups = zip(network.widths, network.cardinalities, strict=True)
      assert {width * network.expansion / cardinality for width, cardinality in groups} == {16}
    generator, discriminator = parameter_counts(recipe(f"roadmap.{name}", "fashion32"))
    assert 120_000 <= discriminator < 240_000 and 120_000 < generator < 240_000


def test_bfloat16_is_off_on_cpus_and_on_elsewhere():
  config = recipe("cifar10")
  stages = {
    platform: factory.build_algorithm(config, platform).generator.bfloat16_stages for platform in ("cpu", "gpu", "tpu")
  }
  assert stages == {"cpu": 0, "gpu": 3, "tpu": 3}


@pytest.mark.parametrize(
  "name, platform, official",
  [
    ("cifar10", "gpu", "bfloat16"),
    ("cifar10", "cpu", "float32"),
    ("stacked_digits", "gpu", "float32"),
    ("roadmap.a", "gpu", "float32"),
    ("roadmap.b", "gpu", "float32"),
    ("roadmap.d1", "gpu", "float32"),
    ("roadmap.e2", "gpu", "bfloat16"),
  ],
)
def test_samples_become_uint8_in_float32_or_in_what_the_last_stage_computes_in(name, platform, official):
  config = recipe(name)
  algorithm = factory.build_algorithm(config, platform)
  assert factory.quantised_in(config, algorithm) == "float32"
  config.run.quantisation = "official"
  assert factory.quantised_in(config, algorithm) == official
  config.run.quantisation = "half"
  with pytest.raises(UserError, match=r"config\.run\.quantisation = 'half' is unknown: choose from \['float32', 'offi"):
    factory.quantised_in(config, algorithm)


def test_recipes_are_locked():
  with pytest.raises(AttributeError):
    recipe("cifar10").batchsize = 3


@pytest.mark.parametrize(
  "name, setting, value, message",
  [
    ("b", "network", "unet", "config.gan.network = 'unet' is unknown: choose from ['r3gan',"),
    ("b", "widths", (8, 8), "config.gan.widths = (8, 8) has 2 entries"),
    ("b", "blocks", (2,) * 7, "config.gan.network = 'stylegan2_skeleton'"),
    ("b", "expansion", 2.0, "config.gan.network = 'stylegan2_skeleton'"),
    ("d1", "grouped_conv", "merged_4", "config.gan.grouped_conv = 'merged_4' does not divide the 1 groups of"),
    ("d1", "expansion", 0.3, "config.gan.cardinalities: 1 groups do not divide width 1536 x expansion 0.3"),
    (
      "e1",
      "cardinalities",
      (5,) * 7,
      "config.gan.cardinalities: 5 groups do not divide width 1536 x",
    ),
  ],
)
def test_impossible_networks_are_refused(name, setting, value, message):
  config = recipe(f"roadmap.{name}")
  config.gan[setting] = value
  with pytest.raises(UserError, match=re.escape(message)):
    factory.build_algorithm(config)


@pytest.mark.parametrize(
  "name, setting, value, message",
  [
    ("stacked_digits", "channels", 4, "config.data.channels = 4: stacked digits need 3"),
    ("stacked_digits", "num_classes", 10, "config.data.num_classes = 10: stacked digits need 0"),
    ("cifar10", "bits", 16, "only grey images are read with 16 bits"),
    ("cifar10", "background", "whyte", "background 'whyte' is not a colour"),
  ],
)
def test_impossible_data_settings_are_refused(name, setting, value, message):
  config = recipe(name)
  config.data[setting] = value
  with pytest.raises(UserError, match=re.escape(message)):
    factory.build_source(config)
