"""cli.ablate, on results written by hand and on real runs of a tiny network."""

import json
import shutil

import pytest
from PIL import Image

from r3gan_jax.training.logging import read_metrics

DIGITS = "--config=configs/stacked_digits.py"
TINY = (
  "--config.gan.widths=(8,8)",
  "--config.gan.cardinalities=(2,2)",
  "--config.batch_size=16",
  "--config.run.total_images=64",
  "--config.run.log_every_images=16",
  "--config.run.metric_samples=200",
)


@pytest.fixture
def ablate(command, tmp_path):
  return lambda *flags: command("ablate", DIGITS, f"--out={tmp_path}", *flags).stdout


def write_result(out, loss, seed, diverged_at=None, **scores):
  directory = out / "stacked_digits" / loss / f"seed_{seed}"
  directory.mkdir(parents=True)
  (directory / "config.json").write_text("{}")
  result = {"recipe": "stacked_digits", "loss": loss, "seed": seed, "images": 200_000}
  (directory / "result.json").write_text(json.dumps(result | {"diverged_at": diverged_at, "scores": scores}))


def test_the_table(ablate, tmp_path):
  for seed, modes, kl in ((0, 990, 0.5), (1, 994, 0.25), (2, 998, 0.75)):
    write_result(tmp_path, "rpgan_r1_r2", seed, modes=modes, modes_kl=kl, real_modes=1000, real_modes_kl=0.02)
  write_result(tmp_path, "gan", 0, diverged_at=12_345)
  write_result(tmp_path, "gan", 1, modes=123.0, modes_kl=2.0)
  write_result(tmp_path, "gan", 2, diverged_at=6_789)
  shown = ablate("--losses=rpgan_r1_r2,gan", "--seeds=0-2")
  assert shown == (tmp_path / "table.md").read_text()
  assert shown.splitlines() == [
    "| recipe | loss | images | seeds | modes | KL | diverged |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    "| stacked_digits | GAN | 200,000 | 3 | 123 | 2 | 2 of 3, at 12,345 and 6,789 images |",
    "| stacked_digits | RpGAN + R1 + R2 | 200,000 | 3 | 994 ± 4 | 0.5 ± 0.25 | none |",
    "| real images |  |  |  | 1000 | 0.02 |  |",
  ]


def test_runs_are_made_once_continued_and_added_to(ablate, refused, tmp_path):
  first = ablate(*TINY, "--losses=gan_r1,recipe", "--seeds=3")
  assert [line.split(" | ")[1:4] for line in first.splitlines()[2:4]] == [
    ["GAN + R1", "64", "1"],
    ["RpGAN + R1 + R2", "64", "1"],
  ]
  runs = {loss: tmp_path / "stacked_digits" / loss / "seed_3" for loss in ("gan_r1", "rpgan_r1_r2")}
  settings = json.loads((runs["gan_r1"] / "config.json").read_text())
  assert (settings["gan"]["loss"], settings["gan"]["penalties"], settings["seed"]) == ("non_saturating", ["r1"], 3)
  metrics = {loss: read_metrics(run) for loss, run in runs.items()}
  # Initial losses show what is minimised, as networks and images are the same: softplus(0), once or twice.
  starts = {loss: values["discriminator/adversarial_loss"][1][0] for loss, values in metrics.items()}
  assert starts["gan_r1"] == pytest.approx(2 * starts["rpgan_r1_r2"], rel=0.1)
  for loss, run in runs.items():
    result = json.loads((run / "result.json").read_text())
    images_seen, modes = metrics[loss]["metrics/modes"]
    assert images_seen[-1] == 64 and result["scores"]["modes"] == modes[-1]
  Image.open(tmp_path / "curves.png").verify()

  # As after an interruption: one run has lost its result, one everything. Another one is new, and diverges.
  (runs["gan_r1"] / "result.json").unlink()
  shutil.rmtree(runs["rpgan_r1_r2"])
  before = (runs["gan_r1"] / "metrics.jsonl").read_bytes()
  common = ("ablate", DIGITS, f"--out={tmp_path}", *TINY, "--seeds=3", "--losses=gan_r1")
  error = refused(*common, "--config.run.total_images=48")
  assert "gan_r1/seed_3 was trained on more images than config.run.total_images = 48" in error
  assert ablate(*TINY, "--seeds=3", "--losses=gan_r1,rpgan_r1_r2") == first
  assert (runs["gan_r1"] / "metrics.jsonl").read_bytes() == before
  assert "gan_r1/seed_3 was made with config.batch_size = 16" in refused(*common, "--config.batch_size=32")
  wild = (*TINY, "--config.name=wild", "--config.gan.learning_rate=(1e30,1e30)")
  added = ablate(*wild, "--losses=rpgan", "--seeds=0").splitlines()
  assert added[:4] == [*first.splitlines()[:4]]
  assert added[4].startswith("| wild | RpGAN | 64 | 1 | - | - | 1 of 1, at ")


def test_mistakes(refused, tmp_path):
  write_result(tmp_path, "gan", 0)
  write_result(tmp_path, "gan_r1", 0)
  (tmp_path / "stacked_digits/gan_r1/seed_0/result.json").write_text("{")
  cases = [
    ((DIGITS, "--losses=wgan"), "--losses=wgan is unknown"),
    ((DIGITS, "--config.run.metrics=()", "--config.run.best_metric="), "config.run.metrics is empty"),
    (
      (DIGITS, "--config.run.total_images=64", "--losses=gan", "--seeds=0"),
      "gan/seed_0 was trained on more images than config.run.total_images = 64",
    ),
    ((DIGITS, "--losses=gan_r1", "--seeds=0"), "result.json cannot be read"),
    (
      ("--config=configs/zoo/dcgan.py", "--config.run.metrics=('fid',)", "--losses=gan"),
      "--losses=gan: dcgan has its own loss",
    ),
  ]
  for arguments, message in cases:
    assert message in refused("ablate", *arguments, f"--out={tmp_path}")
