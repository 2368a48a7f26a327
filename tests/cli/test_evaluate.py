"""The command, run as a user runs it, with a digit classifier of random weights as the feature network."""

import hashlib
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import commands
from helpers.image_files import write_images, zip_directory
from PIL import Image

from r3gan_jax import runs
from r3gan_jax.metrics import digits_cnn
from r3gan_jax.sampling import Sampler, image_grid
from r3gan_jax.training.logging import read_metrics
from r3gan_jax.training.mesh import make_mesh


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  directory = tmp_path_factory.mktemp("evaluate")
  write_images(directory / "a", 100, side=32, first=0)
  write_images(directory / "b", 120, side=32, channels=1, first=1)
  zip_directory(directory / "a", directory / "a.zip")
  images = np.zeros((1, digits_cnn.SIDE, digits_cnn.SIDE, 1), np.uint8)
  for seed, path in enumerate((directory / "classifier.npz", directory / "another" / "classifier.npz")):
    params = jax.jit(digits_cnn.DigitsCNN().init)(jax.random.key(seed), images)["params"]
    digits_cnn.save(path, params, 0.1)
  return directory


@pytest.fixture
def own_cache(environment, files):
  """The environment, with no weights in its cache."""
  return environment | {"XDG_CACHE_HOME": str(files / "cache")}


@pytest.fixture
def evaluate(own_cache):
  return partial(commands.run, own_cache, "evaluate")


def digits(files):
  return "--network=digits", f"--weights={files / 'classifier.npz'}"


def numbers(path):
  (scores,) = json.loads(path.read_text())
  return scores


def test_a_set_against_itself_and_against_another(evaluate, own_cache, files, tmp_path):
  arguments = (*digits(files), "--metrics=fid,precision_recall", "--batch=32")
  of_itself = (f"--real={files / 'a'}", f"--fake={files / 'a.zip'}", *arguments, f"--json={tmp_path / 'itself.json'}")
  of_another = (f"--real={files / 'a'}", f"--fake={files / 'b'}", *arguments)
  shown = evaluate(*of_another, f"--json={tmp_path / 'other.json'}").stdout
  again = (*of_another, f"--json={tmp_path / 'again.json'}")
  assert commands.call(own_cache, "evaluate", [of_itself, again]) == [None, None]
  itself, other = numbers(tmp_path / "itself.json"), numbers(tmp_path / "other.json")
  assert abs(itself["fid"]) < 1e-6
  assert (itself["precision"], itself["recall"]) == (1, 1)
  assert (itself["num_real"], itself["num_fake"], itself["network"]) == (100, 100, "classifier")
  assert other["fid"] > 1e-3 and other["num_fake"] == 120
  assert f"{other['fid']:.6g}" in shown
  assert numbers(tmp_path / "again.json") == other


def test_arrays_statistics_and_a_part_of_the_images(own_cache, files, tmp_path):
  for name, key in (("a", "arr_0"), ("b", "images")):
    paths = sorted((files / name).iterdir())
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    np.savez(tmp_path / f"{name}.npz", **{key: np.stack(images)})
  a, b, saved, saved_alone = files / "a", files / "b", tmp_path / "saved.npz", tmp_path / "alone.npz"

  def score(real, fake, name, *more):
    return f"--real={real}", f"--fake={fake}", f"--json={tmp_path / name}", *digits(files), "--batch=32", *more

  calls = [
    score(a, b, "images", f"--save_statistics={saved}"),
    score(tmp_path / "a.npz", tmp_path / "b.npz", "arrays"),
    score(saved, b, "statistics"),
    (f"--real={a}", f"--save_statistics={saved_alone}", *digits(files)),
    score(a, b, "part", "--num_samples=50"),
    score(a, b, "another", "--num_samples=50", "--seed=1", "--metrics=fid,kid"),
    score(saved, b, "refused", "--metrics=fid,kid"),
    score(a, saved, "refused"),
    score(a, b, "refused", "--num_samples=121"),
    (f"--real={a}", f"--save_statistics={tmp_path / 'no.npz'}", "--num_samples=50", *digits(files)),
    score(a, b, "refused", "--save_statistics=statistics.txt"),
    score(a, b, "refused", "--metrics=kid", f"--save_statistics={tmp_path / 'no.npz'}"),
    score(saved, b, "refused", f"--weights={files / 'another' / 'classifier.npz'}"),
  ]
  errors = commands.call(own_cache, "evaluate", calls)
  assert errors[:6] == [None] * 6
  of_images, of_arrays, of_statistics, part, another = (
    numbers(tmp_path / name) for name in ("images", "arrays", "statistics", "part", "another")
  )
  settings = ("real", "fake")
  for other in (of_arrays, of_statistics):
    assert {**other, **{name: of_images[name] for name in settings}} == of_images
  assert (of_images["real"], of_images["fake"], of_images["seed"]) == (str(a), str(b), 0)
  with np.load(saved) as with_fake, np.load(saved_alone) as alone:
    assert all(np.array_equal(with_fake[name], alone[name]) for name in with_fake.files)
    assert with_fake["num_images"] == 100
  assert (part["num_samples"], part["num_fake"], part["num_real"], part["seed"]) == (50, 50, 100, 0)
  assert (another["num_fake"], another["seed"]) == (50, 1) and another["fid"] != part["fid"]
  assert (another["kid_subsets"], another["kid_subset_size"]) == (100, 50)

  for error, cure in zip(
    errors[6:],
    (
      "mu and sigma, which only FID and FD_DINOv2 compare with: for kid give --real images",
      "statistics instead of images: give it as --real",
      "fake has 120 images, fewer than 121",
      "--num_samples is about the samples of a --workdir, or the images of --fake",
      "cannot write --save_statistics=statistics.txt: choose .npz",
      "add fid or fd_dinov2 to the metrics",
      "weights = ",
    ),
    strict=True,
  ):
    assert error and cure in error and "\n" not in error, cure
  assert not (tmp_path / "refused").exists() and not (tmp_path / "no.npz").exists()


LEFT_OUT = {
  "modes": "the data are not stacked digits",
  "intra_fid": "80 samples are too few for 10 classes",
  "class_accuracy": "it needs the logits of one class an image",
  "inception_score": "it needs class logits, which classifier does not have",
  "classification_error": "r3gan has no networks that classify or encode images",
  "cas": "the data have no labelled test images",
  "pairs": "r3gan draws from no images",
  "fd_dinov2": "dinov2_vitl14_pretrain.pth does not exist, see --download",
  "ppl": "vgg16-397923af.pth does not exist, see --download",
}
"""Of the report of the run below."""


def test_a_run(evaluate, own_cache, files, tmp_path):
  """Conditional, at 32x32; its samples are functions of the seed, and another checkpoint is another generator."""
  run = tmp_path / "run"
  train = ("--config=configs/cifar10.py:smoke", "--config.gan.augment_p=(0.0,0.0)", f"--workdir={run}")
  train += ("--config.gan.bfloat16=on", "--config.run.quantisation=official")
  commands.run(own_cache, "main", *train)
  score = (f"--workdir={run}", "--num_samples=80", *digits(files), "--seed=1")
  evaluate(*score, f"--json={tmp_path / 'first.json'}")
  first = numbers(tmp_path / "first.json")
  assert (first["num_real"], first["num_fake"]) == (256, 80) and first["fid"] > 0
  logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
  assert logged == {"images_seen": 64} | {f"metrics/{name}": first[name] for name in ("fid", "num_real", "num_fake")}
  assert json.loads((run / "protocol.json").read_text())["network"] == "classifier"
  assert read_metrics(run)["metrics/fid"][1][-1] == first["fid"]

  another = f"--weights={files / 'another' / 'classifier.npz'}"
  config = json.loads((run / "config.json").read_text())
  del config["run"]["resize"], config["run"]["metric_samples"], config["run"]["feature_network"]
  (run / "config.json").write_text(json.dumps(config))  # of a version that had no such settings
  *went_well, either, which = commands.call(
    own_cache,
    "evaluate",
    [
      (*score, f"--json={tmp_path / 'again.json'}"),
      (*score, f"--json={tmp_path / 'float32.json'}", "--quantisation=float32"),
      (*score, f"--json={tmp_path / 'before.json'}", "--checkpoint=32"),
      (*score, "--seed=2", "--num_samples=70"),
      (*score, "--seed=2", f"--json={tmp_path / 'second.json'}"),
      (*score, "--resize=pytorch"),
      (*score, another),
      (f"--workdir={run}", f"--real={files / 'a'}"),
      (f"--workdir={run}", *digits(files), "--checkpoint=33"),
    ],
  )
  assert went_well == [None] * 7
  assert numbers(tmp_path / "again.json") == first
  assert (first["images_seen"], first["num_samples"], first["seed"]) == (64, 80, 1)
  # Another protocol is another series; the first one is as it was.
  logged = read_metrics(run)
  weights = hashlib.sha256((files / "another" / "classifier.npz").read_bytes()).hexdigest()[:8]
  others = ("quantised_in=float32", "num_samples=70, seed=2", "seed=2", "resize=pytorch", f"weights={weights}")
  assert {name for name in logged if name.startswith("metrics/fid")} == {
    "metrics/fid",
    *(f"metrics/fid ({other})" for other in others),
  }
  np.testing.assert_array_equal(logged["metrics/fid"][0], [32, 64])
  assert logged["metrics/fid"][1][-1] == first["fid"] != logged[f"metrics/fid (weights={weights})"][1][-1]
  in_float32 = numbers(tmp_path / "float32.json")
  assert (first["quantised_in"], in_float32["quantised_in"]) == ("bfloat16", "float32")
  assert in_float32["fid"] != first["fid"]
  assert numbers(tmp_path / "before.json")["fid"] != first["fid"]
  assert "--real" in either
  assert "choose from [64, 32, 0]" in which

  # Repeated, each set of samples is what its own seed gives, with its own series; beside FID, all that is possible.
  done = evaluate(*score, "--metrics=report", "--repeats=2", f"--json={tmp_path / 'repeated.json'}")
  repeated, second = numbers(tmp_path / "repeated.json"), numbers(tmp_path / "second.json")
  assert (repeated["seed"], repeated["num_samples"]) == ([1, 2], 80)
  assert repeated["fid"] == [first["fid"], second["fid"]] and first["fid"] != second["fid"]
  assert read_metrics(run)["metrics/density (seed=2)"][1][-1] == repeated["density"][1]
  mean, deviation = np.mean(repeated["fid"]), abs(first["fid"] - second["fid"]) / np.sqrt(2)
  shown = re.search(r"^fid +(\S+) \+- (\S+)$", done.stdout, re.MULTILINE)
  np.testing.assert_allclose([float(value) for value in shown.groups()], [mean, deviation], rtol=0.05)
  left_out = dict(re.findall(r"\] (\w+) is left out: (.*)", done.stderr))
  assert left_out.keys() == LEFT_OUT.keys() and all(why in left_out[metric] for metric, why in LEFT_OUT.items())
  assert repeated.keys() >= {"fid", "kid", "precision", "recall", "density", "coverage", "authenticity"}
  assert not repeated.keys() & LEFT_OUT.keys()

  # What is computed is shown even if it cannot be written; a damaged record of the protocol is noticed before.
  lines = (run / "metrics.jsonl").read_text()
  (run / "metrics.jsonl").unlink()
  (run / "metrics.jsonl").mkdir()
  done = evaluate(*score, "--json=/dev/full", status=2)
  assert f"{first['fid']:.6g}" in done.stdout and "shown but not logged" in done.stderr
  assert done.stderr.splitlines()[-1].startswith("error: cannot write --json=/dev/full: ")
  (run / "metrics.jsonl").rmdir()
  (run / "metrics.jsonl").write_text(lines)
  (run / "protocol.json").write_text("[]")
  done = evaluate(*score, status=2)
  assert "protocol.json is damaged" in done.stderr and not done.stdout

  # What was drawn while it trained is of the same kind; the grid's rows are classes.
  trained = runs.open_run(run)
  with Image.open(run / "samples" / "fakes_0000000064.png") as picture:
    grid = np.asarray(picture)
  kinds = []
  for dtype in (jnp.bfloat16, jnp.float32):
    sampler = Sampler(trained.algorithm, make_mesh(jax.local_devices()), quantised_in=dtype)
    images = sampler(trained.params, trained.carry, np.arange(8), np.arange(8) // 4)
    kinds.append(np.array_equal(image_grid(images, columns=4), grid))
  assert kinds == [True, False]


REFUSED = [
  (("--fake=a", "--metrics=fid"), "put https://github.com/mseitzer/pytorch-fid"),
  (("--fake=a", "--metrics=sharpness"), "choose from modes, pairs, cas, ppl, fid, fd_dinov2, kid"),
  (("--fake=a", "--metrics=modes"), "about a run, not about images: name its --workdir"),
  (("--fake=a", "--weights=x.npz"), "--weights needs --network"),
  (("--fake=a", "--quantisation=official"), "--workdir"),
  (("--fake=a", "--truncation=0.7"), "--workdir"),
  (("--fake=a", "--repeats=3"), "which needs a --workdir: parts of --fake would have fewer images"),
  (("--fake=a", "--metrics=report,fid"), "report has all metrics, so name no others"),
  (("--fake=nowhere",), "neither a directory nor a zip"),
  (("--fake=one", "--metrics=kid", "digits"), "KID needs at least 2 images"),
  (("--fake=one", "--metrics=fid,precision_recall", "digits"), "FID needs at least 2 images"),
  (("--fake=a", "--seed=-1"), "--seed"),
  (("--fake=a", "--metrics=inception_score", "digits"), "needs class logits"),
  (("--fake=mixed", "digits"), "bring all to one size"),
]


def test_bad_input_is_one_line_that_names_the_cure(own_cache, files):
  write_images(files / "mixed", 60, side=32)
  write_images(files / "mixed", 1, side=16, first=60)
  write_images(files / "one", 1, side=32)
  calls = []
  for (fake, *rest), _ in REFUSED:
    rest = [part for name in rest for part in (digits(files) if name == "digits" else (name,))]
    calls.append((f"--real={files / 'a'}", f"--fake={files / fake.removeprefix('--fake=')}", *rest))
  for (arguments, cure), error in zip(REFUSED, commands.call(own_cache, "evaluate", calls), strict=True):
    assert error and cure in error and "\n" not in error, arguments
