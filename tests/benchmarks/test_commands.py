"""Benchmarks of parts run on a tiny recipe."""

import json
import os
import sys
from argparse import Namespace

import jax
import pytest

from benchmarks import augmentation, grouped_conv, iteration, metrics, on_gpu, train_autoencoder
from r3gan_jax.interop.sd_vae import read_autoencoder
from r3gan_jax.training.mesh import make_mesh
from r3gan_jax.training.state import abstract_batches

TINY = "configs/cifar10.py:smoke"


def test_grouped_convolutions(monkeypatch, capsys):
  options = ["--configs", TINY, "--batch", "1", "--repetitions", "1", "--algorithms", "per_group"]
  monkeypatch.setattr(sys, "argv", ["grouped_conv", *options])
  grouped_conv.main()
  table = capsys.readouterr().out
  assert "[1, 32, 32, 32] / 2" in table and table.count("penalty gradient") == 4  # one per stage


@pytest.mark.parametrize("name", ["cgan", "dcgan", "sgan"])
def test_random_batches_are_like_those_of_training(name):
  """With labels where reals have some, also if samples have none."""
  experiment = iteration.build(iteration.load_config(f"configs/zoo/{name}.py:smoke", batch=4))
  described = abstract_batches(experiment.algorithm, make_mesh(jax.devices()[:1]), experiment.batch_sizes)
  batches = iteration.random_batches(experiment)
  shapes = [{key: (value.shape, value.dtype) for key, value in batch.items()} for batch in batches]
  assert shapes == [{key: (value.shape, value.dtype) for key, value in batch.items()} for batch in described]
  assert ("label" in batches[0]) == (name != "dcgan")


def test_the_augmentation_alone():
  (row,) = augmentation.alone(Namespace(config=TINY, batch=2, sides=[8], repetitions=1))
  assert row["side"] == "8" and row["forward"] > 0 and row["forward + backward"] > 0


def test_all_metrics_of_a_report(monkeypatch, capsys):
  monkeypatch.setattr(metrics, "FEATURES", 16)
  monkeypatch.setattr(metrics, "LOGITS", 8)
  monkeypatch.setattr(sys, "argv", ["metrics", "--images", "1000"])
  metrics.main()
  table = capsys.readouterr().out.partition("1,000 images a side")[2]
  assert table.count("\n| ") == 8 and "| all " in table


def test_an_autoencoder_is_trained_and_written(tmp_path, monkeypatch, capsys):
  options = ["--config", "configs/fashion_mnist.py:smoke", "--images", "8", "--batch", "4", "--out", str(tmp_path)]
  monkeypatch.setattr(train_autoencoder, "TEST_IMAGES", 8)
  monkeypatch.setattr(sys, "argv", ["train_autoencoder", *options, "--widths", "8", "--groups", "2"])
  with jax.numpy_dtype_promotion("standard"):
    train_autoencoder.main()
  autoencoder, _ = read_autoencoder(tmp_path)
  assert (autoencoder.widths, autoencoder.image_channels, autoencoder.groups) == ((8,), 1, 2)
  assert "PSNR" in capsys.readouterr().out


def test_steps_on_a_card_are_logged_and_ended_in_time(tmp_path):
  """Their tables are collected, also those that a training leaves."""
  steps = [
    on_gpu.Step("quick", ["-c", "print('done', 1 / 0)"], 60),
    on_gpu.Step("slow", ["-c", "import time; print('begun', flush=True); time.sleep(60)"], 2),
  ]
  done = {step.name: on_gpu.run(step, tmp_path, dict(os.environ)) for step in steps}
  assert {name: step["status"] for name, step in done.items()} == {"quick": 1, "slow": "timeout"}
  assert "ZeroDivisionError" in (tmp_path / "quick.log").read_text()

  (tmp_path / "run").mkdir()
  speed = {"progress/images_per_second": 8.0, "progress/peak_memory_bytes": 2**30}
  (tmp_path / "run/metrics.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in ({"event": "started"}, speed))
  )
  tables = on_gpu.tables("training", tmp_path)
  assert tables == {"The recipe as it trains": [{"images / s": 8.0, "peak memory GiB": 1.0}]}
  text = on_gpu.as_markdown({"machine": {"device": "a card"}, "steps": done, "tables": tables})
  assert "a card" in text and "| slow | timeout |" in " ".join(text.split())
