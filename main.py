"""Trains a GAN: `python main.py --config=configs/stacked_digits.py`, the command r3gan_jax/cli/train.py."""

import runpy

if __name__ == "__main__":
  runpy.run_module("r3gan_jax.cli.train", run_name="__main__", alter_sys=True)
