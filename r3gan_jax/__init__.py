"""R3GAN in JAX and Flax, and the GANs before it; docs/library.md shows how to use the package from Python.

    gan = r3gan_jax.load("runs/x")
    images = gan.sample(seeds=range(8), label=3)

[P], in this package: Huang, Gokaslan, Kuleshov, Tompkin, "The GAN is dead; long live the GAN! A Modern GAN Baseline",
NeurIPS 2024, https://arxiv.org/abs/2501.05441.
"""

from typing import TYPE_CHECKING

__all__ = ["TrainedGan", "load"]

if TYPE_CHECKING:
  from r3gan_jax.library import TrainedGan, load
else:

  def __getattr__(name: str) -> object:
    """Imports what the package offers at its first use: commands must not import JAX before memory.py."""
    if name not in __all__:
      raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from r3gan_jax import library

    return getattr(library, name)
