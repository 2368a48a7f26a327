"""The configurations from StyleGAN2 (a) to R3GAN (e2) of configs/roadmap.py, for 50,000 images of Fashion-MNIST.

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/roadmap.py --out=runs/roadmap

24 runs of 8 to 10 minutes of one core each; the data and the classifier are those of configs/comparisons/zoo.py.
"""

from ml_collections import ConfigDict

from configs import roadmap
from configs.comparisons import common


def get_config(variant: str = "") -> ConfigDict:
  del variant
  entries: dict[str, dict[str, object]] = {}
  before = ""
  for name in ("a", "b", "c1", "c2", "d1", "d2", "e1", "e2"):  # each is the control of the next
    entries[name] = common.entry(roadmap.get_config(f"{name}_fashion32"), group="roadmap", control=before)
    before = name
  comparison = common.get_config("fashion_mnist", "The roadmap, on Fashion-MNIST at 32x32", entries)
  comparison.metrics = ("fid",)
  return comparison
