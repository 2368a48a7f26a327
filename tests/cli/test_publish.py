"""Published folders, opened and compared with the runs; a local Hub (helpers/hub_server.py) gets and gives them."""

import dataclasses
import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import commands, official_pickles
from helpers.hub_server import TOKEN, Repository, hub_server
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from configs.zoo import bigan, lapgan, sgan, stylegan
from r3gan_jax import factory, runs
from r3gan_jax.conversion import write_workdir
from r3gan_jax.errors import UserError
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.published import WEIGHTS_FILE, is_published, networks_drawn_from, open_published, write_published
from r3gan_jax.sampling import GUTTER, Sampler
from r3gan_jax.training.checkpoint import DIRECTORY, Checkpoints
from r3gan_jax.training.logging import METRICS_FILE, append_line
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.protocol import keep_protocol
from r3gan_jax.training.state import init_state
from r3gan_jax.training.workdir import check_data, claim_workdir

IMAGES_SEEN = 1200
SECRET = "home/of/the/author"


@pytest.fixture(scope="module")
def directory(command, tmp_path_factory):
  """A directory with work directories below runs/, and what is published of them: sgan, sgan_all and r3gan."""
  directory = tmp_path_factory.mktemp("publish")
  _write_sgan(directory / "runs" / "sgan")
  write_workdir(read_snapshot(official_pickles.path("cond_8px")), directory / "runs" / "r3gan")
  publish = ("publish", f"--workdir={directory / 'runs' / 'sgan'}")
  command(*publish, f"--out={directory / 'new' / 'sgan'}", "--licence=cc-by-4.0")
  command(*publish, f"--out={directory / 'sgan_all'}", "--all")
  command("publish", f"--workdir={directory / 'runs' / 'r3gan'}", f"--out={directory / 'r3gan'}")
  return directory


def _write_sgan(workdir):
  """Writes a run with moments of batch norm and a scalar in its carry; each array has values of its own."""
  config = sgan.get_config("smoke")
  config.run.data_path = config.init_from = f"/{SECRET}"
  algorithm, random = factory.build_algorithm(config), np.random.default_rng(0)

  def moved(leaf):
    return leaf + random.uniform(0, 0.1, leaf.shape).astype(leaf.dtype) if leaf.dtype == jnp.float32 else leaf

  state = jax.tree.map(moved, jax.jit(lambda: init_state(algorithm, 0))())
  claim_workdir(workdir, factory.checked(config.to_dict()))
  check_data(workdir, 60_000, ["zero", "one"])
  checkpoints = Checkpoints(workdir / DIRECTORY)
  assert checkpoints.save(state.replace(images_seen=jnp.int32(IMAGES_SEEN)))
  checkpoints.close()
  keep_protocol(epath.Path(workdir), {"network": "default", "num_samples": 500, "seed": 0})
  metrics = epath.Path(workdir / METRICS_FILE)
  append_line(metrics, IMAGES_SEEN - 1, {"metrics/fid": 99.5})
  append_line(metrics, IMAGES_SEEN, {"metrics/fid": 12.25, "metrics/kid (num_samples=70)": 0.5})


def drawn(trained, seeds):
  """Returns the images of seeds, each in the class that it draws."""
  quantised_in = factory.quantised_in(trained.config, trained.algorithm)
  return Sampler(trained.algorithm, make_mesh(), quantised_in=quantised_in)(trained.params, trained.carry, seeds)


@pytest.mark.parametrize("name, published", [("sgan", "new/sgan"), ("r3gan", "r3gan")])
def test_the_same_images_as_of_the_run_in_another_process(command, directory, tmp_path, name, published):
  command("sample", f"--workdir={directory / 'runs' / name}", "--seeds=3-7", f"--out={tmp_path / 'images.npz'}")
  trained = open_published(directory / published)
  assert trained.images_seen == runs.open_run(directory / "runs" / name).images_seen
  with np.load(tmp_path / "images.npz") as there:
    np.testing.assert_array_equal(drawn(trained, np.arange(3, 8)), there["images"])


def test_the_file_has_the_averaged_generator_and_the_carry(directory):
  trained = runs.open_run(directory / "runs" / "sgan")
  tensors = load_file(directory / "new" / "sgan" / WEIGHTS_FILE)
  assert {name.partition(".")[0] for name in tensors} == {"generator", *trained.carry}
  expected = {"generator": trained.params["generator"], **trained.carry}
  assert tensors.keys() == names_of(expected).keys()
  for name, leaf in names_of(expected).items():
    np.testing.assert_array_equal(tensors[name], leaf)
  with safe_open(directory / "new" / "sgan" / WEIGHTS_FILE, "numpy") as file:
    assert file.metadata() == {"format": "flax", "images_seen": str(IMAGES_SEEN)}


def test_all_has_the_whole_state(directory):
  _, algorithm, state = runs.open_state(directory / "runs" / "sgan")
  trained = runs.open_run(directory / "runs" / "sgan")
  averaged = {average.of for average in algorithm.averages.values()}
  assert averaged
  both = {**state.params, **state.carry}
  unaveraged = {"unaveraged": {name: both[name] for name in averaged}}
  expected = names_of({**trained.params, **trained.carry, **unaveraged, "optimizer": state.optimizer})
  tensors = load_file(directory / "sgan_all" / WEIGHTS_FILE)
  assert tensors.keys() == expected.keys()
  for name, leaf in expected.items():
    np.testing.assert_array_equal(tensors[name], leaf)
  assert open_published(directory / "sgan_all").params.keys() == state.params.keys()


def names_of(tree, prefix=""):
  """Returns the arrays of nested dicts and records by dotted names."""
  if hasattr(tree, "_asdict"):
    tree = tree._asdict()
  elif dataclasses.is_dataclass(tree):
    tree = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
  elif isinstance(tree, tuple):
    tree = dict(enumerate(tree))
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
    name: leaf
    for key, below in tree.items()
    for name, leaf in names_of(below, f"{prefix}.{key}" if prefix else str(key)).items()
  }


def test_the_card(directory):
  card = ModelCard.load(directory / "new" / "sgan" / "README.md")
  assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "r3gan_jax")
  assert "sgan" in card.data.tags
  results = {result.metric_type: result.metric_value for result in card.data.eval_results}
  assert results == {"fid": 12.25, "kid": 0.5}
  assert "| 12.25 | network inception, num samples 500, seed 0 |" in card.text
  assert "| 0.5 | network inception, num samples 70, seed 0 |" in card.text
  assert "99.5" not in card.text
  assert "60,000" in card.text and "1,200 images seen" in card.text and "another run" in card.text
  assert not ModelCard.load(directory / "r3gan" / "README.md").data.eval_results
  assert 'load("sgan")' in card.text


def test_no_path_of_the_author_is_published(directory):
  for path in (directory / "new" / "sgan").iterdir():
    assert SECRET.encode() not in path.read_bytes()
  assert open_published(directory / "new" / "sgan").config.run.data_path == ""


def test_the_grid_shows_seeds_in_order_and_classes_in_rows(directory):
  trained = runs.open_run(directory / "runs" / "r3gan")
  sampler = Sampler(trained.algorithm, make_mesh())
  images = sampler(trained.params, trained.carry, np.array([1, 8]), np.array([0, 1]))
  grid = np.asarray(Image.open(directory / "r3gan" / "samples.png"))
  assert grid.shape == (8 * 10 - 2, 8 * 10 - 2, 3) and (grid[8:10] == GUTTER).all()
  np.testing.assert_array_equal(grid[:8, 10:18], images[0])
  np.testing.assert_array_equal(grid[10:18, :8], images[1])


def test_what_is_published(directory):
  assert is_published(directory / "r3gan") and is_published("hf://owner/name@main")
  assert not is_published(directory / "runs" / "r3gan") and not is_published("gs://bucket/run")


@pytest.mark.parametrize(
  "recipe, networks",
  [
    (bigan, {"generator"}),
    (lapgan, {"generator_8", "generator_16", "generator_32"}),
    (stylegan, {"generator"}),
  ],
)
def test_the_networks_that_samples_need(recipe, networks):
  algorithm = factory.build_algorithm(recipe.get_config("smoke"))
  assert networks_drawn_from(algorithm) == networks

  for truncation in (1.0, 0.5):  # no other is missed
    assert jax.eval_shape(partial(_drawn, algorithm, networks, truncation)).shape == (2, *algorithm.image_shape)


def _drawn(algorithm, networks, truncation):
  params, carry = algorithm.init(jax.random.key(0))
  noise = algorithm.noise(jax.random.split(jax.random.key(0), 2))
  return algorithm.generate({name: params[name] for name in networks}, carry, noise, None, truncation)


def test_a_folder_that_cannot_be_read(directory, tmp_path):
  def damaged(change):
    (folder := tmp_path / "damaged").mkdir(exist_ok=True)
    for path in (directory / "r3gan").iterdir():
      (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    with pytest.raises(UserError) as error:
      open_published(folder)
    return str(error.value)

  tensors = load_file(directory / "r3gan" / WEIGHTS_FILE)
  name, metadata = max(tensors), {"images_seen": "1"}

  def rewritten(tensors, metadata):
    return lambda folder: save_file(tensors, folder / WEIGHTS_FILE, metadata)

  assert WEIGHTS_FILE in damaged(lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"short"))
  assert WEIGHTS_FILE in damaged(lambda folder: (folder / WEIGHTS_FILE).unlink())
  assert name in damaged(rewritten({n: tensor for n, tensor in tensors.items() if n != name}, metadata))
  assert name in damaged(rewritten(tensors | {name: tensors[name][..., :1]}, metadata))
  assert name in damaged(rewritten(tensors | {name: tensors[name].astype(np.float16)}, metadata))
  assert "images_seen" in damaged(rewritten(tensors, {}))
  assert "names no algorithm" in damaged(lambda folder: (folder / "config.json").write_text("{}"))


def test_refusals_come_before_anything_is_written(refused, directory, tmp_path):
  publish = ("publish", f"--workdir={directory / 'runs' / 'r3gan'}")
  out = f"--out={tmp_path / 'new'}"
  assert "--out=" in refused(*publish, f"--out={directory / 'runs' / 'r3gan'}")
  assert "--out=" in refused(*publish, "--out=gs://bucket/new")
  assert "--licence=" in refused(*publish, out, "--licence=My own")
  assert "--private" in refused(*publish, out, "--private")
  assert "--push=name" in refused(*publish, out, "--push=name")
  assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(directory, tmp_path):
  trained = runs.open_run(directory / "runs" / "r3gan")
  broken = dataclasses.replace(trained, params=jax.tree.map(lambda leaf: leaf * np.float32(1e30), trained.params))
  with pytest.raises(UserError, match="not finite"):
    write_published(broken, epath.Path(directory / "runs" / "r3gan"), tmp_path / "new", "mit", "new")
  assert not list(tmp_path.iterdir())


FETCH = """
import json, os, sys
from r3gan_jax.errors import UserError
import r3gan_jax

for token, address in json.loads(sys.argv[1]):
  os.environ["HF_TOKEN"] = token
  try:
    print(json.dumps(r3gan_jax.load(address).images_seen))
  except UserError as error:
    print(json.dumps(str(error)))
"""


def test_push_and_fetch(environment, directory, tmp_path):
  """By way of the Hub: the same files, private if asked to, older revisions too, and the token is nowhere printed."""
  with hub_server(tmp_path / "home") as (repositories, variables):
    stranger = environment | variables
    owner = stranger | {"HF_TOKEN": TOKEN}

    def push(environment, name, number, *flags, status=0, workdir="r3gan"):
      flags = (f"--workdir={directory / 'runs' / workdir}", f"--out={tmp_path / number}", f"--push={name}", *flags)
      done = commands.run(environment, "publish", *flags, status=status)
      assert TOKEN not in done.stdout + done.stderr
      return done.stdout + done.stderr

    assert "HF_TOKEN" in push(stranger, "me/gan", "none", status=2)
    assert not repositories and not (tmp_path / "none").exists()
    assert f"{variables['HF_ENDPOINT']}/me/gan" in push(owner, "me/gan", "1", "--private")
    first = repositories["me/gan"].newest
    push(owner, "me/gan", "2", "--private", workdir="sgan")
    assert repositories["me/gan"].private and len(repositories["me/gan"].commits) == 2
    for number, revision in (("1", first), ("2", repositories["me/gan"].newest)):
      sent = {path.name: path.read_bytes() for path in (tmp_path / number).iterdir()}
      assert repositories["me/gan"].files(revision) == sent
    assert 'load("hf://me/gan")' in (tmp_path / "1" / "README.md").read_text()

    repositories["me/open"] = Repository(private=False)
    assert "is public" in push(owner, "me/open", "3", "--private", status=2)
    assert not repositories["me/open"].commits and is_published(tmp_path / "3")
    assert "hf upload" in push(stranger | {"HF_TOKEN": "hf_wrong"}, "me/gan", "4", status=2)

    addresses = ["hf://me/gan", "hf://me/gan", f"hf://me/gan@{first}", "hf://me/none", "hf://gan"]
    asked = json.dumps(list(zip(["", *[TOKEN] * 4], addresses, strict=True)))
    program = [sys.executable, "-c", FETCH, asked]
    done = subprocess.run(program, cwd=commands.ROOT, env=stranger, capture_output=True, text=True)
    assert done.returncode == 0 and TOKEN not in done.stdout + done.stderr, done.stderr
    hidden, newest, older, missing, misspelt = map(json.loads, done.stdout.splitlines())
    assert (newest, older) == (IMAGES_SEEN, 123_456)
    assert "hf auth login" in hidden and "hf://me/none" in missing and "hf://OWNER/NAME" in misspelt
