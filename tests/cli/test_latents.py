"""R3GAN on latents, by the commands: from images to latents, training, samples, scores, and other people's hands."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import commands
from jax import export
from PIL import Image

import r3gan_jax
from configs import imagenet256
from r3gan_jax import factory, runs
from r3gan_jax.data.files import ImageFiles
from r3gan_jax.data.images import Decoder
from r3gan_jax.data.prepare import prepare_images
from r3gan_jax.errors import UserError
from r3gan_jax.exploring.explorer import Explorer, State
from r3gan_jax.interop.sd_vae import read_autoencoder, write_autoencoder
from r3gan_jax.networks.vae import Autoencoder
from r3gan_jax.ops.images import to_uint8
from r3gan_jax.training.workdir import read_config

IMAGES = 24


def write_random_autoencoder(folder, seed):
  """A tiny autoencoder: 4 times fewer pixels a side, 4 channels."""
  autoencoder = Autoencoder(widths=(4, 4, 8), blocks=1, groups=2)
  params = autoencoder.init(jax.random.key(seed), np.zeros((1, 16, 16, 3), np.float32))["params"]
  write_autoencoder(folder, autoencoder, params)


def recipe(directory, total_images=32):
  """A tiny run on 4x4 latents of images of 16x16 pixels in 2 classes."""
  config = imagenet256.get_config()
  config.name = "latents"
  config.data.update({"name": "latents", "pixels": "pixels", "resolution": 4, "num_classes": 2})
  config.gan.update({"widths": (8,), "cardinalities": (2,), "blocks": (1,), "burn_in_images": 64})
  config.batch_size = 8
  config.run.update({"data_path": str(directory / "data"), "autoencoder": str(directory / "vae")})
  config.run.update({"total_images": total_images, "log_every_images": 16, "snapshot_every_images": 16})
  config.run.update({"grid": (4, 2), "metrics": ("fid",), "feature_network": "pixels", "metric_samples": 1000})
  return config


@pytest.fixture(scope="module")
def directory(environment, tmp_path_factory):
  """Images, their latents by the command, and a trained run."""
  directory = tmp_path_factory.mktemp("latents")
  random = np.random.default_rng(0)
  for index in range(IMAGES):
    (directory / "images" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(directory / "images" / "ab"[index % 2] / f"{index}.png")
  prepare_images(ImageFiles(directory / "images"), "pixels", directory / "data", (16, 16), Decoder(3), True, 1, False)
  (directory / "recipe.py").write_text(f"""
from ml_collections import ConfigDict


def get_config():
  return ConfigDict({recipe(directory).to_dict()!r}, type_safe=False)
""")
  write_random_autoencoder(directory / "vae", 0)
  write_random_autoencoder(directory / "other", 1)
  flags = ("--prepared=pixels", "--encode=sd-vae", "--mirrored", "--name=latents", f"--data_dir={directory / 'data'}")
  commands.run(environment, "prepare_data", *flags, f"--weights={directory / 'vae'}")
  runs.train_run(recipe(directory), directory / "run")
  return directory


def test_latents_are_those_of_the_encoder(directory):
  config = factory.with_numbers(recipe(directory))
  source = factory.build_source(config)
  autoencoder, params = read_autoencoder(directory / "vae")
  images = factory.build_source(factory.of_images(config))[np.arange(IMAGES)]
  for version, pixels in enumerate((images["image"], images["image"][:, :, ::-1])):
    expected = autoencoder.apply({"params": params}, pixels / 127.5 - 1, method="encode")
    actual = np.split(source[np.arange(IMAGES)]["image"][:, version], 2, axis=-1)
    for one, other in zip(actual, expected, strict=True):
      np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
  np.testing.assert_array_equal(source[np.arange(IMAGES)]["label"], images["label"])
  assert config.data.latents.image == (16, 16, 3)


def test_samples_are_decoded(directory):
  """By hand: what the GAN of latents draws, back to the encoder's scale, and decoded."""
  config, algorithm, state = runs.open_state(directory / "run")
  trained = runs.averaged_run(directory / "run", config, algorithm, state)
  noise = algorithm.noise(jax.vmap(jax.random.key)(np.arange(6)))
  labels = np.arange(6) % 2
  drawn = algorithm.generate(trained.params, trained.carry, noise, labels)
  assert drawn.shape == (6, 4, 4, 4)
  autoencoder, params = read_autoencoder(directory / "vae")
  latents = np.asarray(drawn) * 2 * np.array(config.data.latents["std"]) + np.array(config.data.latents["mean"])
  expected = to_uint8(autoencoder.apply({"params": params}, latents.astype(np.float32), method="decode"))
  images = r3gan_jax.load(directory / "run").sample(range(6), label=labels)
  assert images.shape == (6, 16, 16, 3)
  assert np.abs(images.astype(int) - np.asarray(expected)).max() <= 1
  with Image.open(directory / "run" / "samples" / "reals.png") as reals:
    assert reals.size == (4 * 18 - 2, 2 * 18 - 2)


def test_a_resumed_run_equals_an_uninterrupted_one(directory):
  workdir = directory / "resumed"
  runs.train_run(recipe(directory, 16), workdir)
  runs.train_run(recipe(directory), workdir)
  states = [runs.open_state(path)[2] for path in (directory / "run", workdir)]
  jax.tree.map(np.testing.assert_array_equal, *(replace(state, rng=jax.random.key_data(state.rng)) for state in states))


def test_scores_are_those_of_training(environment, directory):
  logged = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
  fid = [line["metrics/fid"] for line in logged if "metrics/fid" in line]
  commands.run(environment, "evaluate", f"--workdir={directory / 'run'}", f"--json={directory / 'scores.json'}")
  (scores,) = json.loads((directory / "scores.json").read_text())
  assert scores["fid"] == pytest.approx(fid[-1], rel=1e-6)


def test_exported_with_and_without_the_decoder(environment, directory):
  noise, labels = np.random.default_rng(0).standard_normal((3, 64), np.float32), np.array([0, 1, 1], np.int32)
  results = []
  for flags in ((), ("--latents",)):
    out = directory / f"generator{len(flags)}.stablehlo"
    commands.run(environment, "export", f"--workdir={directory / 'run'}", f"--out={out}", *flags)
    results.append(np.asarray(export.deserialize(bytearray(out.read_bytes())).call(noise, labels)))
  gan = r3gan_jax.load(directory / "run")
  images = gan.algorithm.generate(gan.params, gan.carry, noise, labels)
  assert results[0].shape == (3, 16, 16, 3) and results[1].shape == (3, 4, 4, 4)
  np.testing.assert_allclose(results[0], images, atol=1e-4)
  np.testing.assert_allclose(gan.algorithm.decode(gan.params, results[1]), images, atol=1e-4)


def test_published_latents_are_decoded_by_the_named_autoencoder(environment, directory):
  """The folder has the GAN alone; what decodes its samples is named, as it is on the Hub."""
  out = directory / "published"
  commands.run(environment, "publish", f"--workdir={directory / 'run'}", f"--out={out}", "--licence=mit")
  assert (out / "samples.png").exists()
  config = read_config(out)
  assert "autoencoder" not in config["run"] and config["data"]["latents"]["image"] == [16, 16, 3]
  config["run"]["autoencoder"] = str(directory / "vae")
  (out / "config.json").write_text(json.dumps(config))
  expected = r3gan_jax.load(directory / "run").sample(range(4))
  np.testing.assert_array_equal(r3gan_jax.load(out).sample(range(4)), expected)


def test_a_classifier_of_latents_guides(environment, directory):
  """It is trained on latents as they are drawn, and the GAN of latents learns with it."""
  config = recipe(directory, 8)
  classifier = directory / "classifier.npz"
  flags = (f"--config={directory / 'recipe.py'}", f"--out={classifier}", "--epochs=20")
  commands.run(environment, "train_classifier", *flags)
  config.gan.update({"guidance_classifier": str(classifier), "guidance_weight": 1.0})
  config.gan.update({"alignment_network": str(classifier), "alignment_weight": 1.0, "alignment_stage": 0})
  runs.train_run(config, directory / "guided")
  lines = (directory / "guided" / "metrics.jsonl").read_text()
  assert "generator/cross_entropy" in lines and "discriminator/alignment" in lines


def test_a_sweep(environment, directory):
  """Of a recipe on latents: scores and floors are of images."""
  flags = ("--set=gan.gamma=0.1", f"--out={directory / 'sweep'}", "--seeds=0", "--images=16", "--jobs=1")
  commands.run(environment, "sweep", f"--config={directory / 'recipe.py'}", *flags)
  (page,) = (directory / "sweep" / "results").glob("*/README.md")
  assert "untrained network" in page.read_text()


def test_errors(directory):
  config = recipe(directory)
  config.run.autoencoder = str(directory / "other")
  with pytest.raises(UserError, match=r"config\.run\.autoencoder = .* has other weights"):
    runs.train_run(config, directory / "refused")
  config = recipe(directory)
  config.data.pixels = ""
  with pytest.raises(UserError, match=r"config\.data\.pixels is empty"):
    runs.train_run(config, directory / "refused")
  config = recipe(directory)
  config.gan.augment.hue = 1.0
  config.gan.augment_p = 0.5
  with pytest.raises(UserError, match=r"config\.gan\.augment\.hue"):
    runs.train_run(config, directory / "refused")
  config = recipe(directory)
  config.data.source = "tfds"
  config.data.channels = 5
  with pytest.raises(UserError, match=r"config\.data\.channels = 5"):
    runs.train_run(config, directory / "refused")
  assert not (directory / "refused").exists()


def test_states_of_a_page_draw_the_images(directory):
  explorer = Explorer(runs.open_run(directory / "run"), directory / "run")
  (sample,) = r3gan_jax.load(directory / "run").sample(seeds=[3], label=1)
  assert np.abs(explorer.draw(State(3, label=1)).astype(int) - sample).max() <= 1
  assert (explorer.draw(State(3, label=1, strengths={"closed_form_0": 4.0})) != sample).any()
