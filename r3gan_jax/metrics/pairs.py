"""Scores of images that are drawn from an image: against the true one, and against a guess without a network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r3gan_jax.losses.pretrained import cosine_similarity
from r3gan_jax.metrics.feature_extractor import FeatureExtractor, ImageSet
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.metrics.image_quality import psnr, ssim

METRICS = ("psnr", "ssim", "feature_distance")
"""The scores of samples, and with a prefix, "baseline_psnr", of the baseline."""


class Drawn(NamedTuple):
  """The images drawn from the conditions of N images, all uint8 [N, H, W, C] except for `conditions` of any shape.

  Attributes:
    true: the images.
    samples: two independent samples of each condition.
    baseline: what the condition gives without a network.
    conditions: of the images.
    of_samples: the same conditions made of the first samples; None if they come with images and are not made of them.
  """

  true: jax.Array
  samples: tuple[jax.Array, jax.Array]
  baseline: jax.Array
  conditions: jax.Array
  of_samples: jax.Array | None


class PairQuality:
  """Scores networks that draw from images.

  Args:
    draw: (networks, some of `images`, keys [N]) -> `Drawn`, each image by itself.
    network: the feature network. The distance of two images is 1 - cos of their features: as LPIPS (Zhang et al. 2018,
      arXiv 1801.03924) compares directions, but with one vector for the image.
    images: the true ones, or of pairs, with their conditions.
    mesh, batch_per_device: see `FeatureExtractor`.
    seed: of samples and conditions. The draws of an image depend on it and on the image's pixels alone.
  """

  def __init__(
    self,
    draw: Callable[[Any, jax.Array, jax.Array], Drawn],
    network: FeatureNetwork,
    images: ImageSet,
    mesh: Mesh,
    batch_per_device: int,
    seed: int = 0,
  ):
    def apply(networks: Any, images: jax.Array) -> dict[str, jax.Array]:
      own, features = networks
      drawn = draw(own, images, _keys(images, seed))

      def distance(some: jax.Array, others: jax.Array) -> jax.Array:
        return 1 - cosine_similarity(*(network.apply(features, x)["features"] for x in (some, others)))

      found = {"diversity": distance(*drawn.samples)}
      if drawn.of_samples is not None:
        found["consistency"] = psnr(drawn.of_samples, drawn.conditions)
      for prefix, guess in {"": drawn.samples[0], "baseline_": drawn.baseline}.items():
        found |= {
          f"{prefix}psnr": psnr(guess, drawn.true),
          f"{prefix}ssim": ssim(guess, drawn.true),
          f"{prefix}feature_distance": distance(guess, drawn.true),
        }
      return found

    self._images, self._features = images, network.params
    self._extractor = FeatureExtractor(FeatureNetwork("own", apply, (), "none"), mesh, batch_per_device)

  def __call__(self, networks: Any) -> dict[str, float]:
    """Returns the means over all images.

    'psnr', 'ssim' and 'feature_distance' are between a sample and the true image, and those of the baseline have the
    prefix 'baseline_'. 'diversity' is the feature distance of two samples of one condition; 'consistency' is the PSNR
    between the condition and that of the sample, where one is made of it.

    With several processes, all of them call it.
    """
    batches = list(self._extractor(self._images, (networks, self._features)))
    return {name: float(np.mean(np.concatenate([batch[name] for batch in batches]))) for name in batches[0]}


def _keys(images: jax.Array, seed: int) -> jax.Array:
  """Returns a key for each image, [N], by its pixels: so neither their order nor the devices matter."""
  flat = images.reshape(len(images), -1).astype(jnp.uint32)
  # A hash by multiplication (Knuth, TAOCP 6.4): odd factors, modulo 2^32.
  factors = (jnp.arange(flat.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(2654435761) | jnp.uint32(1)
  hashes = jnp.sum(flat * factors[None], axis=1, dtype=jnp.uint32)
  return jax.vmap(lambda value: jax.random.fold_in(jax.random.key(seed), value))(hashes)
