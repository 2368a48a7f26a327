"""Benchmarks of parts run on a tiny recipe."""

import sys
from argparse import Namespace

from benchmarks import augmentation, grouped_conv

TINY = "configs/cifar10.py:smoke"


def test_grouped_convolutions(monkeypatch, capsys):
  options = ["--configs", TINY, "--batch", "1", "--repetitions", "1", "--algorithms", "per_group"]
  monkeypatch.setattr(sys, "argv", ["grouped_conv", *options])
  grouped_conv.main()
  table = capsys.readouterr().out
  assert "[1, 32, 32, 32] / 2" in table and table.count("penalty gradient") == 4  # one per stage


def test_the_augmentation_alone():
  (row,) = augmentation.alone(Namespace(config=TINY, batch=2, sides=[8], repetitions=1))
  assert row["side"] == "8" and row["forward"] > 0 and row["forward + backward"] > 0
