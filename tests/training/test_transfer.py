"""Runs initialised from golden weights, at other resolutions and with other classes."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import golden_cases, official_pickles
from helpers.processes import Processes
from helpers.states import arrays_of, final_state

from configs import cifar10
from r3gan_jax import factory, runs
from r3gan_jax.conversion import write_workdir
from r3gan_jax.errors import UserError
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.ops.resample import downsample2x, upsample2x
from r3gan_jax.training.checkpoint import has_checkpoint
from r3gan_jax.training.state import init_state
from r3gan_jax.training.transfer import plan_transfer

SHAPES = {
  "uncond_16px": {"widths": (24, 16, 8), "cardinalities": (6, 4, 2), "blocks": (1, 2, 1), "num_classes": 0},
  "cond_8px": {"widths": (32, 16), "cardinalities": (8, 4), "blocks": (2, 1), "num_classes": 5},
}
"""Settings of the golden networks."""


@pytest.fixture(scope="session")
def workdirs(tmp_path_factory):
  """The golden networks as converted work directories."""
  directory = tmp_path_factory.mktemp("converted")
  for case in SHAPES:
    write_workdir(read_snapshot(official_pickles.path(case)), directory / case)
  return directory


def recipe(case, init_from, **changes):
  """Returns the configuration of a golden case's network, with changes."""
  shape = SHAPES[case] | changes
  config = cifar10.get_config()
  config.init_from = str(init_from)
  resolution = 4 * 2 ** (len(shape["widths"]) - 1)
  config.data.update({"source": "generated", "resolution": resolution, "num_classes": shape.pop("num_classes")})
  config.gan.update({"noise_dim": 8, "bfloat16_stages": 0} | shape)
  config.gan.augment_p = (0.0, 0.0)
  config.batch_size = 8
  return config


def begin(workdirs, case, **changes):
  """Returns the source's algorithm and state, and the experiment and start of a run initialised from them."""
  config = recipe(case, workdirs / case, **changes)
  _, source_algorithm, source = runs.open_state(workdirs / case)
  experiment = factory.build_experiment(config, jax.device_count())
  start = runs.build_start(config, experiment, workdirs / "new")
  return source_algorithm, source, experiment, start


def higher(case, width):
  """Returns the settings of a golden network with one more stage."""
  shape = SHAPES[case]
  return {
    "widths": (*shape["widths"], width),
    "cardinalities": (*shape["cardinalities"], 2),
    "blocks": (*shape["blocks"], 2),
  }


@functools.partial(jax.jit, static_argnums=0)
def features(network, params, z, labels):
  """Returns G's images, and the outputs of its layers by name."""
  images, found = network.apply({"params": params}, z, labels, capture_intermediates=True)
  layers = found["intermediates"].items()
  return images, {name: x["__call__"][0] for name, x in layers if name.startswith(("basis", "up_", "stage_"))}


@functools.partial(jax.jit, static_argnums=0)
def logits_of(network, params, images, labels):
  return network.apply({"params": params}, images, labels)


def resample(by, images):
  return np.asarray(jax.jit(by)(images))


@golden_cases.cases
@pytest.mark.parametrize("widths", ["equal", "another"])
def test_the_old_stages_are_unchanged_at_double_the_resolution(workdirs, case, widths):
  top = SHAPES[case]["widths"][-1]
  changes = higher(case, top if widths == "equal" else top // 2)
  source_algorithm, source, experiment, start = begin(workdirs, case, **changes)
  golden = golden_cases.load(case).arrays
  z, labels = golden["z"], golden.get("labels")
  for before, after, recorded in (
    (source.params["generator"], start.params["generator"], golden["fake"]),
    (source.ema["generator"], start.ema["generator"], golden["ema_fake"]),
  ):
    _, expected = features(source_algorithm.generator, before, z, labels)
    images, actual = features(experiment.algorithm.generator, after, z, labels)
    assert len(expected) >= 4 and actual.keys() - expected.keys() == {*new_layers(len(changes["widths"]) - 1)}
    for name, value in expected.items():
      np.testing.assert_allclose(actual[name], value, rtol=1e-6, atol=1e-6 * jnp.abs(value).max(), err_msg=name)
    enlarged = resample(upsample2x, recorded)
    # New blocks start as the identity; if they are as wide as the last one, to_image is transferred, too.
    same = np.allclose(images, enlarged, rtol=1e-5, atol=1e-5 * np.abs(enlarged).max())
    assert same == (widths == "equal")

  real = np.repeat(np.repeat(golden["real"], 2, axis=1), 2, axis=2)
  smaller = resample(downsample2x, real)
  expected = logits_of(source_algorithm.discriminator, source.params["discriminator"], smaller, labels)
  logits = logits_of(experiment.algorithm.discriminator, start.params["discriminator"], real, labels)
  assert np.allclose(logits, expected, rtol=1e-4, atol=1e-5) == (widths == "equal")


def new_layers(stage):
  return f"up_{stage}", f"stage_{stage}_block_0", f"stage_{stage}_block_1"


def test_only_parameters_and_averages_are_transferred(workdirs):
  """All else is as from scratch: optimisers, images seen, PRNG keys, and new layers with their averages."""
  _, source, experiment, start = begin(workdirs, "cond_8px", **higher("cond_8px", 8), num_classes=7)
  scratch = jax.jit(lambda: init_state(experiment.algorithm, experiment.seed))()
  expected = scratch.replace(params=dict(scratch.params), ema=dict(scratch.ema))
  new = {"class_embedding", "to_image", "from_image"}
  for tree, old in ((expected.params, source.params), (expected.ema, source.ema)):
    for network in tree:
      old_layers = {layer: old[network][layer] for layer in old[network].keys() - new}
      tree[network] = tree[network] | old_layers
  assert [int(adam.updates) for adam in source.optimizer.values()] == [1, 1]
  jax.tree.map(np.testing.assert_array_equal, arrays_of(start), arrays_of(expected))
  assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in jax.tree.leaves(start))


def initialised(case, **changes):
  """Returns the layers of G and of D that are initialised; checks that all others are transferred whole."""
  algorithms = [factory.build_algorithm(recipe(case, "", **change)) for change in (changes, {})]
  target, source = (jax.eval_shape(algorithm.init, jax.random.key(0))[0] for algorithm in algorithms)
  found = []
  for network in ("generator", "discriminator"):
    rows = [dict(getattr(algorithm, "leading_rows", {})).get(network, {}) for algorithm in algorithms]
    transfer = plan_transfer(network, target[network], source[network], *rows)
    ours = jax.tree.map(lambda x: np.zeros(x.shape), target[network])
    theirs = jax.tree.map(lambda x: np.ones(x.shape), source[network])
    merged = flatten_dict(transfer(jax.tree.map(jnp.asarray, ours), jax.tree.map(jnp.asarray, theirs)), sep="/")
    assert {name: x.shape for name, x in merged.items()} == {n: x.shape for n, x in flatten_dict(ours, sep="/").items()}
    whole = {name for name, leaf in merged.items() if (leaf == 1).all()}
    new = {name.rpartition("/")[0] for name in merged.keys() - whole}
    assert new.isdisjoint(name.rpartition("/")[0] for name in whole)
    found.append(new)
  return tuple(found)


def test_which_layers_are_initialised():
  assert initialised("cond_8px") == (set(), set())
  assert initialised("cond_8px", num_classes=7) == ({"class_embedding"}, {"class_embedding"})
  up, *blocks = new_layers(2)
  assert initialised("cond_8px", **higher("cond_8px", 16)) == ({*blocks}, {*blocks})
  assert initialised("cond_8px", **higher("cond_8px", 8)) == (
    {*blocks, f"{up}/conv", "to_image"},
    {*blocks, "down_1/conv", "from_image"},
  )
  lower = {name: value[:2] for name, value in SHAPES["uncond_16px"].items() if name != "num_classes"}
  assert initialised("uncond_16px", **lower) == ({"to_image"}, {"from_image"})
  # The cardinality is part of conv2's shape.
  groups = {f"stage_1_block_{block}" for block in (0, 1)}
  assert initialised("uncond_16px", cardinalities=(6, 8, 2)) == (groups, groups)
  # With or without classes, the rows of z in G's first linear layer are transferred.
  linear = {"basis/linear"}
  assert initialised("cond_8px", num_classes=0) == (set(), linear)
  both = {*linear, "class_embedding"}
  assert initialised("uncond_16px", num_classes=3) == (both, both)


def test_adding_classes(workdirs):
  """G is unchanged where the new embedding is zero: z keeps its rows."""
  source_algorithm, source, experiment, start = begin(workdirs, "uncond_16px", num_classes=3)
  z = golden_cases.load("uncond_16px").arrays["z"]
  labels = jnp.zeros(len(z), jnp.int32)
  _, expected = features(source_algorithm.generator, source.params["generator"], z, None)
  _, actual = features(experiment.algorithm.generator, without_class(start.params["generator"]), z, labels)
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-5 * jnp.abs(value).max(), err_msg=name)


def test_removing_classes(workdirs):
  """G becomes the source with a zero class embedding."""
  source_algorithm, source, experiment, start = begin(workdirs, "cond_8px", num_classes=0)
  golden = golden_cases.load("cond_8px").arrays
  params = without_class(source.params["generator"])
  expected, _ = features(source_algorithm.generator, params, golden["z"], golden["labels"])
  images, _ = features(experiment.algorithm.generator, start.params["generator"], golden["z"], None)
  np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def without_class(params):
  return {**params, "class_embedding": jax.tree.map(jnp.zeros_like, params["class_embedding"])}


@pytest.mark.parametrize("counts", [(8, 16), (16, 8)])
def test_noise_of_another_length_is_not_mistaken_for_the_class(counts):
  """Kernels of one shape: 16 rows of z in one network, 8 of z and 8 of the class in the other."""
  source = {"basis/linear/kernel": np.arange(32.0).reshape(16, 2)}
  target = {"basis/linear/kernel": -np.ones((16, 2))}
  trees = [unflatten_dict(tree, sep="/") for tree in (target, source)]
  rows = [{"basis/linear/kernel": count} for count in counts]
  transfer = plan_transfer("generator", *trees, *rows)
  assert transfer.lines[1].endswith("rows 1 to 8 of kernel transferred, the rest initialised")
  merged = transfer(*jax.tree.map(jnp.asarray, trees))["basis"]["linear"]["kernel"]
  np.testing.assert_array_equal(merged, np.concatenate([source["basis/linear/kernel"][:8], -np.ones((8, 2))]))


def test_the_table(workdirs, caplog):
  config = recipe("cond_8px", workdirs / "cond_8px", **higher("cond_8px", 8), num_classes=7)
  config.gan.blocks = (1, 1, 1)
  with caplog.at_level("INFO", logger="absl"):
    runs.build_start(config, factory.build_experiment(config, 8), workdirs / "new")
  lines = [" ".join(line.split()) for line in caplog.messages[-1].splitlines()]
  assert lines[0] == f"from {workdirs / 'cond_8px'} at 123,456 images:"
  block = "bias1 64, bias2 64, conv1 32x64, conv2 3x3x8x64, conv3 64x32"
  assert lines[1] == "discriminator:" and len(lines) == 23
  assert lines[12:] == [
    "generator:",
    "basis constant 4x4x32 transferred",
    "basis/linear kernel 16x32 transferred",
    "class_embedding kernel 7x8 initialised: kernel 5x8 in the source",
    f"stage_0_block_0 {block} transferred",
    "stage_1_block_0 bias1 32, bias2 32, conv1 16x32, conv2 3x3x8x32, conv3 32x16 transferred",
    "stage_2_block_0 bias1 16, bias2 16, conv1 8x16, conv2 3x3x8x16, conv3 16x8 initialised: not in the source",
    "to_image kernel 8x3 initialised: kernel 16x3 in the source",
    "up_1/conv kernel 32x16 transferred",
    "up_2/conv kernel 16x8 initialised: not in the source",
    f"stage_0_block_1 {block} not used",
  ]


def freezing(config, discriminator, generator):
  config.gan.freeze_discriminator, config.gan.freeze_generator = discriminator, generator
  return factory.build_experiment(config, 8)


def test_stages_that_freeze(workdirs, caplog):
  """D's from the images, G's from the noise, as the table says."""
  config = recipe("uncond_16px", workdirs / "uncond_16px")
  experiment = freezing(config, 2, 1)
  with caplog.at_level("INFO", logger="absl"):
    start = runs.build_start(config, experiment, workdirs / "new")
  lines = [line.split() for line in caplog.messages[-1].splitlines() if line.endswith("transferred, frozen")]
  assert [line[0] for line in lines] == [
    *("down_1/conv", "from_image", "stage_1_block_0", "stage_1_block_1", "stage_2_block_0"),
    *("basis", "basis/linear", "stage_0_block_0"),
  ]
  moments = {network: set(adam.second_moment) for network, adam in start.optimizer.items()}
  assert moments == {
    "discriminator": {"basis", "down_0", "stage_0_block_0"},
    "generator": {"stage_1_block_0", "stage_1_block_1", "stage_2_block_0", "to_image", "up_1", "up_2"},
  }
  everything = freezing(config, 3, 3).algorithm.frozen
  assert {network: {*start.params[network]} - {layer for _, layer in everything} for network in start.params} == {
    "discriminator": set(),
    "generator": {"to_image"},
  }


def test_initialised_layers_are_not_frozen(workdirs):
  config = recipe("cond_8px", workdirs / "cond_8px", **higher("cond_8px", 8))
  with pytest.raises(UserError, match=r"from_image of the discriminator would be frozen as it is initialised \(init.*"):
    runs.build_start(config, freezing(config, 1, 0), workdirs / "new")
  config = recipe("uncond_16px", workdirs / "uncond_16px", num_classes=3)
  with pytest.raises(UserError, match=r"basis/linear of the generator .* config\.gan\.freeze_generator"):
    runs.build_start(config, freezing(config, 0, 1), workdirs / "new")


@pytest.mark.parametrize(
  "settings, init_from, message",
  [((4, 0), "run", "freeze_discriminator = 4: .* 0 to 3"), ((0, 1), "", r"name it by config\.init_from")],
)
def test_what_cannot_be_frozen(settings, init_from, message):
  with pytest.raises(UserError, match=message):
    freezing(recipe("uncond_16px", init_from), *settings)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda run: shutil.rmtree(run), "config.json not found: .* is not a work directory of r3gan_jax"),
    (lambda run: (run / "config.json").write_text('{"model_type": "bert"}'), "its config.json names no algorithm"),
    (lambda run: (run / "config.json").write_text("{"), "config.json cannot be read: "),
    (lambda run: shutil.rmtree(run / "checkpoints"), "holds no checkpoint yet"),
    (lambda run: damage(run / "checkpoints"), "none of the checkpoints in .* can be read"),
  ],
)
def test_unusable_sources(workdirs, tmp_path, change, message):
  run = tmp_path / "run"
  shutil.copytree(workdirs / "cond_8px", run)
  change(run)
  config = recipe("cond_8px", run)
  with pytest.raises(UserError, match=rf"^config\.init_from = '{run}': .*{message}") as raised:
    runs.build_start(config, factory.build_experiment(config, 8), tmp_path / "new")
  assert "\n" not in str(raised.value) and not (tmp_path / "new").exists()


def damage(directory):
  for file in directory.rglob("*"):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(b"x" * file.stat().st_size)


def test_networks_with_no_layer_in_common(workdirs):
  with pytest.raises(
    UserError, match=r"no layer of its discriminator fits: basis is constant 4x4x48 here, constant 4x4x32"
  ):
    begin(workdirs, "cond_8px", widths=(48, 24), num_classes=7)


def test_another_algorithm(workdirs, monkeypatch):
  monkeypatch.setitem(factory.ALGORITHMS, "other", factory.ALGORITHMS["r3gan"])
  config = recipe("cond_8px", workdirs / "cond_8px")
  config.algorithm = "other"
  with pytest.raises(UserError, match=r"was trained with config\.algorithm = 'r3gan', not 'other'"):
    runs.build_start(config, factory.build_experiment(config, 8), workdirs / "new")


def test_a_run_with_a_checkpoint_resumes_from_it(workdirs):
  """Even if config.init_from no longer exists."""
  config = recipe("cond_8px", workdirs / "gone")
  assert runs.build_start(config, factory.build_experiment(config, 8), workdirs / "cond_8px") is None
  assert has_checkpoint(workdirs / "cond_8px" / "checkpoints") and not has_checkpoint(workdirs / "new")


def test_trains_from_golden_weights_at_double_the_resolution(environment, workdirs, tmp_path):
  """Two processes train; only one logs the table."""
  source, run = tmp_path / "source", tmp_path / "run"
  shutil.copytree(workdirs / "cond_8px", source)
  before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
  train = (
    *("main", "--config=configs/cifar10.py:smoke", f"--workdir={run}", "--config.gan.augment_p=(0.0,0.0)"),
    *("--config.data.resolution=16", "--config.data.num_classes=5", f"--config.init_from={source}"),
    *("--config.gan.widths=(32,16,8)", "--config.gan.cardinalities=(8,4,2)"),
    *("--config.gan.blocks=(2,1,1)", "--config.gan.noise_dim=8", "--config.run.grid=(2,2)"),
  )
  first, second = Processes(environment, 2, 1, *train, "--config.run.total_images=32").finish(0, 0)
  assert f"from {source} at 123,456 images:" in first and "32 of 32 images" in first
  assert "stage_2_block_0" in first and "initialised: not in the source" in first and "stage_2" not in second
  assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before

  _, _, start = runs.open_state(run, "0")
  golden = read_snapshot(official_pickles.path("cond_8px"))
  for layer in ("stage_0_block_0", "stage_1_block_0"):
    jax.tree.map(np.testing.assert_array_equal, start.ema["generator"][layer], golden.ema[layer])
  end = final_state(run)
  trained = jax.tree.map(lambda a, b: (np.asarray(a) != b).any() and np.isfinite(b).all(), start.params, end.params)
  assert all(jax.tree.leaves(trained)) and end.images_seen == 32
