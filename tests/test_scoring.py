"""The one way to score a run: its data are known by content, what is missing is said first, each part is kept."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_files import write_idx_files, write_images, zip_directory

from configs import stacked_digits
from r3gan_jax import comparison, factory, perceptual_path_length, runs, scoring
from r3gan_jax.data.prepare import prepare_idx
from r3gan_jax.errors import UserError
from r3gan_jax.metrics import classification_accuracy_score, digits_cnn, dinov2, inception
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.metrics.lpips import LPIPS
from r3gan_jax.pretrained import classifier_path
from r3gan_jax.training.mesh import make_mesh, replicated
from r3gan_jax.training.protocol import keep_protocol, protocol_differences
from r3gan_jax.training.state import averaged, init_state


@pytest.fixture
def caches(tmp_path, monkeypatch):
  """An empty cache, with no weights."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe(**run):
  config = stacked_digits.get_config("smoke")
  config.data.source = "stacked_digits"
  config.gan.widths = (8, 8)
  config.run.update({"metric_samples": 40} | run)
  return config


def built(config):
  return config, factory.build_algorithm(config), factory.build_source(config)


def save_classifier(path, seed=0):
  blank = np.zeros((1, digits_cnn.SIDE, digits_cnn.SIDE, 1), np.uint8)
  params = jax.jit(digits_cnn.DigitsCNN().init)(jax.random.key(seed), blank)["params"]
  path.parent.mkdir(parents=True, exist_ok=True)
  digits_cnn.save(path, params, 0.995)


def test_data_are_known_by_all_their_images(tmp_path, caches):
  """A folder or zip of equal sizes and names, one byte of one image of which has changed."""
  config = recipe()
  config.data.update({"source": "folder", "resolution": 8})
  packed = str(tmp_path / "data.zip")

  def fingerprint(path, **changes):
    config.run.update({"data_path": path, "cache_gib": 1.0} | changes)
    return scoring.real_images(config, factory.build_source(config), 40).fingerprint()

  write_images(tmp_path / "data", 300, suffix="bmp")
  zip_directory(tmp_path / "data", tmp_path / "data.zip")
  before = fingerprint(packed)
  assert before == fingerprint(packed, cache_gib=0.0) == fingerprint(packed, on_corrupt_image="skip")
  assert before == fingerprint(str(tmp_path / "data"))
  file = tmp_path / "data" / "00177.bmp"
  data = file.read_bytes()
  file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  zip_directory(tmp_path / "data", tmp_path / "data.zip")
  assert fingerprint(packed) == fingerprint(str(tmp_path / "data")) != before


@pytest.mark.parametrize(
  "run, missing",
  [
    ({"metrics": ("modes", "fid")}, r"pt_inception-.*\.pth does not exist: .*--download"),
    ({"metrics": ("modes", "precision_recall")}, r"vgg16-.*\.pth does not exist: .*--download"),
    ({"metrics": ("modes", "kid"), "feature_network": "digits"}, r"digits-cnn-.*\.npz does not exist: .*train_class"),
  ],
)
def test_missing_weights_are_noticed_before_anything_is_computed(caches, monkeypatch, run, missing):
  read = []
  monkeypatch.setattr("r3gan_jax.data.stacked.StackedSource.__getitem__", lambda self, indices: read.append(indices))
  with pytest.raises(UserError, match=missing):
    scoring.Scorer(*built(recipe(**run)))
  assert not read


@pytest.mark.parametrize(
  "run, wrong",
  [
    ({"metrics": ("fid",), "metric_samples": 1}, "FID needs at least 2 images per side"),
    ({"metrics": ("precision_recall",), "metric_samples": 3}, "precision and recall need at least 4 images"),
    ({"metrics": ("inception_score",), "metric_samples": 40}, "needs class logits, which digits-cnn-.* not have"),
  ],
)
def test_what_cannot_be_computed_is_noticed_before_anything_is_drawn(caches, run, wrong):
  save_classifier(classifier_path("mnist"))
  with pytest.raises(UserError, match=wrong):
    scoring.Scorer(*built(recipe(feature_network="digits", **run)))


def test_scores_of_truncated_samples_are_a_series_of_their_own(caches, tmp_path):
  config, algorithm, source = built(recipe(metrics=("fid",), feature_network="pixels"))
  networks = averaged(algorithm, jax.jit(lambda: init_state(algorithm, 0))())
  whole = scoring.Scorer(config, algorithm, source)
  truncated = scoring.Scorer(config, algorithm, source, truncation=0.5)
  (((_, of_all),), ((settings, numbers),)) = whole(*networks), truncated(*networks)
  images = scoring.fake_images(algorithm, source, 40, 0, truncation=0.5)(*networks)
  ((_, expected),) = whole.of_images(images)
  assert numbers == expected and numbers["fid"] != of_all["fid"]
  assert settings["truncation"] == truncated.protocol["truncation"] == 0.5

  # A run from before there was truncation, and one whose first scores are of truncated samples.
  older = {name: value for name, value in whole.protocol.items() if name != "truncation"}
  for name, kept, scored, differences in (
    ("older", older, whole, {}),
    ("older", older, truncated, {"truncation": (1.0, 0.5)}),
    ("truncated", truncated.protocol, whole, {"truncation": (0.5, 1.0)}),
  ):
    (tmp_path / name).mkdir(exist_ok=True)
    keep_protocol(tmp_path / name, kept)
    assert protocol_differences(tmp_path / name, scored.protocol) == differences


def test_scores_of_samples_with_classes(caches):
  """Of the classes that were asked for, beside the real images of those classes."""
  config = importlib.import_module("configs.zoo.acgan").get_config("smoke")
  config.run.update({"metrics": ("class_accuracy", "intra_fid"), "metric_samples": 150, "feature_network": "digits"})
  path = classifier_path(config.data.name)
  save_classifier(path)
  config, algorithm, source = built(config)
  networks = averaged(algorithm, jax.jit(lambda: init_state(algorithm, 0))())
  ((_, numbers),) = scoring.Scorer(config, algorithm, source)(*networks)
  fake, everything = scoring.fake_images(algorithm, source, 150, seed=0)(*networks), np.arange(150)
  asked, pixels = fake.labels(everything), fake.images(everything)
  assert set(asked) == set(range(10))
  found = digits_cnn.classify(digits_cnn.load(path)[0], pixels[..., 0])
  assert numbers["class_accuracy"] == np.mean(found == asked)
  real = scoring.real_images(config, source, 150)
  np.testing.assert_array_equal(real.labels(everything), source[everything]["label"])
  assert numbers["intra_fid"] > 0 and numbers["intra_fid_num_real"] == len(source)

  for metric in ("class_accuracy", "intra_fid"):
    unconditional = importlib.import_module("configs.zoo.dcgan").get_config("smoke")
    unconditional.run.metrics = (metric,)
    with pytest.raises(UserError, match=f"'{metric}' needs a conditional GAN"):
      scoring.Scorer(*built(unconditional))


def test_own_weights_have_a_protocol_of_their_own(tmp_path, caches):
  """By their content: two files of one name are two networks, and a copy of the published one is not another."""
  config = recipe(metrics=("fid",), feature_network="inception")
  algorithm = factory.build_algorithm(config)

  def protocol(path=None, content=b""):
    if path:
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(content)
    return scoring.protocol(config, algorithm, weights=path)

  published = protocol()
  assert published == protocol(tmp_path / "elsewhere" / "pt_inception-2015-12-05-6726825d.pth")
  assert (published["network"], "weights" in published) == ("default", False)
  one, two = (protocol(tmp_path / place / "mine.npz", place.encode()) for place in "ab")
  assert one["network"] == two["network"] == "mine"
  assert one["weights"] != two["weights"] and one == protocol(tmp_path / "b" / "mine.npz", b"a")


def labelled(tmp_path, name):
  """Returns a recipe of the zoo on a data set of 12 training and 5 test images, and the images and labels of both."""
  images = write_idx_files(tmp_path)
  prepare_idx(tmp_path, "mnist", tmp_path / "data")
  config = importlib.import_module(f"configs.zoo.{name}").get_config("smoke")
  config.data.update({"source": "tfds", "name": "mnist"})
  config.run.update({"data_path": str(tmp_path / "data"), "metrics": ("classification_error",)})
  return config, images


@pytest.mark.parametrize("name", ["acgan", "infogan", "sgan"])
def test_the_classification_error_is_of_test_images_and_draws_no_samples(tmp_path, monkeypatch, name):
  """Of classes, and of categories that training images name, although the GAN is not told of classes."""
  config, images = labelled(tmp_path, name)
  config, algorithm, source = built(config)
  monkeypatch.setattr(scoring, "fake_images", None)
  scorer = scoring.Scorer(config, algorithm, source)
  assert scorer.protocol == {}
  networks = averaged(algorithm, jax.jit(lambda: init_state(algorithm, 0))())
  ((settings, numbers),) = scorer(*networks)
  tell = jax.jit(algorithm.categorise if name == "infogan" else algorithm.classify)
  told = {}
  for prefix, (pixels, _) in images.items():
    side = (config.data.resolution - 28) // 2
    padded = np.pad(pixels[..., None], ((0, 0), (side, side), (side, side), (0, 0)))
    told[prefix] = np.asarray(tell(*networks, padded / np.float32(127.5) - 1)).argmax(axis=1)
  if name == "infogan":
    labels = images["train"][1]
    names = {kind: np.bincount(labels[told["train"] == kind]).argmax() for kind in set(told["train"])}
    told["t10k"] = np.array([names.get(kind, 0) for kind in told["t10k"]])
  assert settings == {} and numbers["classification_error"] == np.mean(told["t10k"] != images["t10k"][1])
  assert numbers["classification_error_test_images"] == 5


def test_scores_of_a_run_that_are_not_of_features(tmp_path, monkeypatch):
  """The classification accuracy score learns from samples; path lengths are of other latents with each seed."""
  config, _ = labelled(tmp_path, "acgan")
  config.run.update({"metrics": ("cas", "ppl"), "metric_samples": 16})
  monkeypatch.setattr(classification_accuracy_score, "STEPS", 2)
  monkeypatch.setattr(perceptual_path_length, "_BATCH_PER_DEVICE", 2)
  weights = jax.jit(LPIPS().init)(jax.random.key(0), *np.zeros((2, 1, 16, 16, 3), np.float32))["params"]
  monkeypatch.setattr(scoring, "lpips_params", lambda download: weights)
  config, algorithm, source = built(config)
  networks = averaged(algorithm, jax.jit(lambda: init_state(algorithm, 0))())
  scorer = scoring.Scorer(config, algorithm, source)
  with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam
    (of_paths, paths), (of_samples, samples) = scorer(*networks)
    (_, others), _ = scorer.of_seed(1)(*networks)
  assert of_paths == {"num_samples": 16, "seed": 0}
  assert of_samples == of_paths | {"quantised_in": "float32", "truncation": 1.0}
  assert scorer.protocol["num_samples"] == 16
  assert paths["ppl_num_paths"] == 16 and paths["ppl"] > 0 and others["ppl"] not in (0, paths["ppl"])
  assert samples["cas_num_fake"] == 16 and samples["cas_test_images"] == 5
  assert {samples["cas"], samples["real_cas"]} <= {0, 0.2, 0.4, 0.6, 0.8, 1}

  config.data.split = "train+test"
  with pytest.raises(UserError, match=r"'cas' needs a prepared data set .* split = 'train\+test'"):
    scoring.Scorer(*built(config))
  unconditional = importlib.import_module("configs.zoo.dcgan").get_config("smoke")
  unconditional.run.metrics = ("cas",)
  with pytest.raises(UserError, match="'cas' needs a conditional GAN"):
    scoring.Scorer(*built(unconditional))


@pytest.mark.parametrize(
  "metrics, network, protocol, of_network",
  [
    (("fid", "fd_dinov2"), "", "default", {"inception-2015-12-05", "dinov2-vitl14"}),
    (("fid", "fd_dinov2"), "inception", "default", {"inception-2015-12-05", "dinov2-vitl14"}),
    (("fid", "fd_dinov2"), "pixels", "pixels", {"pixels", "dinov2-vitl14"}),
    (("fid",), "dinov2", "dinov2", {"dinov2-vitl14"}),
  ],
)
def test_fd_dinov2_has_its_own_network(monkeypatch, metrics, network, protocol, of_network):
  """FID and FD_DINOv2 are computed side by side; whatever network is chosen for FID, FD_DINOv2 keeps its own."""
  names = {name: module.feature_network({}).name for name, module in (("inception", inception), ("dinov2", dinov2))}

  def mean(params, images):
    return {"features": images.astype(jnp.float32).mean((1, 2))}

  def build(name, *_):
    return FeatureNetwork(names.get(name, name), mean, (), "none")

  monkeypatch.setattr(comparison, "build_feature_network", build)
  config, algorithm, source = built(recipe(metrics=metrics, feature_network=network, metric_samples=200))
  scorer = scoring.Scorer(config, algorithm, source)
  assert scorer.protocol["network"] == protocol
  scores = [*scorer.of_images(scoring.real_images(config, source, 200))]
  assert {settings["network"] for settings, _ in scores} == of_network
  assert {name for _, numbers in scores for name in numbers} == {*metrics, "num_real", "num_fake"}


@pytest.mark.parametrize(
  "name, data, wrong",
  [
    ("dcgan", {}, "needs networks that classify or encode images, which dcgan has not"),
    ("bigan", {"source": "generated"}, "a split 'test' that is not trained on, but config.data.source = 'generated'"),
    ("bigan", {"split": "train+test"}, r"split = 'train\+test': leave the metric out"),
    ("bigan", {"label_key": "kind"}, "data set 'mnist' has no classes in its feature 'kind'"),
  ],
)
def test_a_classification_error_that_cannot_be(tmp_path, name, data, wrong):
  config, _ = labelled(tmp_path, name)
  config.data.update(data)
  with pytest.raises(UserError, match=wrong):
    scoring.Scorer(*built(config))


def test_each_part_is_logged_when_it_is_computed(tmp_path):
  """Also if the next one fails."""
  config = recipe(metrics=("modes",))
  config, algorithm, source = built(config)

  class Failing(scoring.Scorer):
    def __call__(self, params, carry):
      yield from super().__call__(params, carry)
      raise UserError("no memory for the next part")

  written = {}

  class Writer:
    def write_scalars(self, images_seen, scalars):
      written.update(scalars)

  loader = factory.build_loader(config, source)
  *_, score = runs.build_snapshots(config, algorithm, {}, loader, tmp_path, Failing(config, algorithm, source))
  state = jax.jit(lambda: init_state(algorithm, 0), out_shardings=replicated(make_mesh()))()
  with pytest.raises(UserError, match="next part"):
    score(*averaged(algorithm, state), 8, Writer())
  assert written["metrics/modes"] > 0 and written["metrics/modes_samples"] == 40
