"""cli.sweep, on real runs of a tiny network."""

import json
import shlex

import pytest
from helpers import commands

from r3gan_jax.cli.shared.devices import gpus, share
from r3gan_jax.training.workdir import read_config

RECIPE = """
from configs import stacked_digits


def get_config():
  config = stacked_digits.get_config()
  config.name = "tiny"
  config.gan.update({"widths": (8, 8), "cardinalities": (2, 2), "gamma": (4, 1)})
  config.batch_size = 16
  config.run.update({"feature_network": "pixels", "metrics": ("fid",), "metric_samples": 100, "best_metric": ""})
  return config
"""


@pytest.fixture
def recipe(tmp_path):
  (tmp_path / "tiny.py").write_text(RECIPE)
  return f"--config={tmp_path / 'tiny.py'}"


def test_values_and_multiples_of_a_schedule(command, recipe, tmp_path):
  """Each is trained in a process of its own; the best one's command trains the full recipe."""
  flags = (recipe, "--config.gan.noise_dim=8", "--set=gan.gamma=0.5,x0.5", "--images=48", "--seeds=1")
  only = "--only=gamma_0.5,gamma_x0.5"
  done = command("sweep", *flags, only, f"--out={tmp_path}", "--jobs=2")
  results, fids = tmp_path / "results" / "tiny", {}
  for entry, gamma in (("gamma_0.5", [0.5, 0.5]), ("gamma_x0.5", [2.0, 0.5])):
    kept = json.loads((results / f"{entry}_seed_1.json").read_text())
    assert kept["settings"]["gan"]["gamma"] == gamma and kept["images"] == 48
    config = read_config(tmp_path / "tiny" / entry / "seed_1")
    assert (config["seed"], config["gan"]["burn_in_images"]) == (1, round(100_000 * 48 / 200_000))
    fids[entry] = kept["scores"]["fid"]
  page = (results / "README.md").read_text()
  (line,) = [line.strip() for line in page.splitlines() if "main.py" in line]
  best = min(fids, key=fids.get)
  assert f"Best: gan.gamma = {best.removeprefix('gamma_')}, with FID" in page and line in done.stderr
  words = shlex.split(line)
  assert words[:3] == ["python", "main.py", recipe]
  assert words[3:] == ["--config.gan.noise_dim=8", f"--config.gan.gamma={'0.5' if best == 'gamma_0.5' else (2.0, 0.5)}"]
  assert sorted(path.suffix for path in results.iterdir()) == [".json", ".json", ".md", *[".png"] * 4]


def test_all_combinations(environment, recipe, tmp_path):
  """A result that was made with other settings names the entry, so the entries are these."""
  results = tmp_path / "results" / "tiny"
  results.mkdir(parents=True)
  flags = (recipe, f"--out={tmp_path}", "--set=gan.gamma=(2.0,0.2),1", "--set=batch_size=16,32", "--seeds=0")
  names = [f"gamma_{gamma}_batch_size_{size}" for gamma in ("2.0-0.2", "1") for size in (16, 32)]
  for name in names:
    (results / f"{name}_seed_0.json").write_text("{")
  errors = commands.call(environment, "sweep", [(*flags, f"--only={name}") for name in names])
  for name, error in zip(names, errors, strict=True):
    assert f"{name}_seed_0.json cannot be read" in error


def test_mistakes(environment, recipe, tmp_path):
  out = f"--out={tmp_path}"
  cases = [
    (("--set=gan.gama=1",), "--set=gan.gama: there is no setting config.gan.gama"),
    (("--set=gan.gamma.x=1",), "there is no setting config.gan.gamma.x"),
    (("--set=gan.gamma",), "--set=gan.gamma: give a setting and its values"),
    (("--set=gan.gamma=1,,2",), "give a setting and its values"),
    (("--set=seed=1,2",), "give seeds by --seeds"),
    (("--set=run.total_images=1,2",), "settings below config.run do not change what is trained"),
    (("--set=gan.gamma=1,1",), "--set has 1 twice"),
    (("--set=gan.gamma=1", "--set=gan.gamma=2"), "names a setting twice"),
    (("--set=gan.loss=x2",), "config.gan.loss = 'relativistic' cannot be multiplied"),
    (("--set=gan.loss=hinge",), "loss_hinge: config.gan.loss = 'hinge' is unknown"),
    (("--set=gan.gamma=-1",), "gamma_-1: config.gan.gamma = (-1.0, -1.0): -1.0 must not be negative"),
    (("--set=gan.gamma=1", "--config.run.metrics=()"), "config.run.metrics is empty"),
  ]
  errors = commands.call(environment, "sweep", [(recipe, out, *flags) for flags, _ in cases])
  for error, (_, message) in zip(errors, cases, strict=True):
    assert message in error
  assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"]


@pytest.mark.parametrize(
  "visible, jobs, shares",
  [
    ("4,5,6", 2, [["4", "6"], ["5"]]),
    ("GPU-a,GPU-b", 2, [["GPU-a"], ["GPU-b"]]),
    ("", 2, [[], []]),
    ("7", 3, [["7"], ["7"], ["7"]]),
  ],
)
def test_runs_share_out_what_is_at_hand(monkeypatch, visible, jobs, shares):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  assert [share(gpus(), slot, jobs) for slot in range(jobs)] == shares
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert gpus() == []
