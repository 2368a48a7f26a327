"""Perceptual path length: how much samples change along short steps in latent space (Karras et al. 2019, section 4.1).

The step is at the start of a path between two random latents, as StyleGAN2's paper has it, and is EPSILON of it. The
path is straight in W, for GANs that have it (`capabilities.HasStyles`), else as interpolation goes: on the sphere, or
straight where noise fills a box. Images are in float32, neither clipped nor rounded; larger ones are averaged down to
256 pixels. The distance is LPIPS by VGG16. NVIDIA's code has a file of its own for it, vgg16.pt, so scores compare
with published ones only roughly; torch-fidelity's has the same definition by ppl_z_interp_mode="slerp_any" and
ppl_sample_similarity_dtype="float32".
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from r3gan_jax.algorithms.base import DATA_AXIS, Algorithm, Carry, Params
from r3gan_jax.algorithms.capabilities import HasBfloat16, HasBoundedNoise, HasStyles
from r3gan_jax.errors import UserError
from r3gan_jax.metrics.features import as_rgb
from r3gan_jax.metrics.lpips import LPIPS
from r3gan_jax.progress_bar import progress_bar
from r3gan_jax.sampling import Sampler, lerp, slerp
from r3gan_jax.training.mesh import make_mesh, replicated

EPSILON = 1e-4
PERCENTILES = (1, 99)
"""Distances outside are left out."""

SMALLEST_SIDE = 16
"""VGG16 halves images four times."""

_LARGEST_SIDE = 256
_BATCH_PER_DEVICE = 16


class PerceptualPathLength:
  """Scores the generator of `algorithm`, by the parameters `lpips` of LPIPS.

  Raises:
    UserError: a side of images is below `SMALLEST_SIDE`.
  """

  def __init__(self, algorithm: Algorithm, lpips: Any):
    if min(algorithm.image_shape[:2]) < SMALLEST_SIDE:
      raise UserError(
        f"metrics: 'ppl' needs images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, not "
        f"{algorithm.image_shape[0]}x{algorithm.image_shape[1]}: leave it out"
      )
    self._algorithm = algorithm = algorithm.in_float32() if isinstance(algorithm, HasBfloat16) else algorithm
    mesh = make_mesh(jax.local_devices())
    self._lpips = jax.device_put(lpips, replicated(mesh))
    self._sampler = Sampler(algorithm, mesh, _BATCH_PER_DEVICE)

    def distances(params: Any, carry: Any, lpips: Any, start: Any, end: Any, labels: Any) -> jax.Array:
      images = (_prepared(image) for image in _ends(algorithm, params, carry, start, end, labels))
      found: Any = LPIPS().apply({"params": lpips}, *images)
      return found / EPSILON**2

    rows = P(DATA_AXIS)
    specs = (P(), P(), P(), rows, rows, rows)
    self._distances = jax.jit(jax.shard_map(distances, mesh=mesh, in_specs=specs, out_specs=rows))

  def __call__(
    self, params: Params, carry: Carry, starts: np.ndarray, ends: np.ndarray, labels: np.ndarray | None
  ) -> dict[str, float]:
    """Scores averaged parameters and carry by the paths from seeds `starts`, int [n], to `ends`, int [n].

    Args:
      labels: int [n], of both ends; None if unconditional.

    Returns:
      'ppl', 'ppl_std' over the paths, and 'ppl_num_paths'; each process computes a share.
    """
    shares = np.array_split(np.arange(len(starts)), jax.process_count())
    share, longest, batch = shares[jax.process_index()], len(shares[0]), self._sampler.batch
    found: list[np.ndarray] = []
    with progress_bar(total=longest, title="paths", quiet=jax.process_index() > 0) as bar:
      for at in range(0, longest, batch):
        chosen = share[np.minimum(np.arange(at, at + batch), len(share) - 1)]  # padding repeats the last path
        asked = None if labels is None else labels[chosen].astype(np.int32)
        found.append(np.asarray(self._of_batch(params, carry, starts[chosen], ends[chosen], asked)))
        bar.update(min(batch, longest - at))
    of_all = multihost_utils.process_allgather(np.concatenate(found)).reshape(jax.process_count(), -1)
    distances = np.concatenate([row[: len(part)] for row, part in zip(of_all, shares, strict=True)])
    if not np.isfinite(distances).all():
      raise UserError("ppl: distances are not finite (NaN or infinity): choose another checkpoint")
    return trimmed(distances)

  def _of_batch(
    self, params: Params, carry: Carry, starts: np.ndarray, ends: np.ndarray, labels: np.ndarray | None
  ) -> jax.Array:
    start, end = (self._sampler.noise(seeds) for seeds in (starts, ends))
    if not isinstance(self._algorithm, HasStyles):
      between = lerp if isinstance(self._algorithm, HasBoundedNoise) else slerp
      end = np.concatenate([between(*pair, np.array([EPSILON])) for pair in zip(start, end, strict=True)])
    with jax.default_matmul_precision("highest"):  # accelerators round more than the step is long
      return self._distances(params, carry, self._lpips, start, end, labels)


def trimmed(distances: np.ndarray) -> dict[str, float]:
  """Returns 'ppl' and 'ppl_std', the mean and deviation of those within `PERCENTILES`, and 'ppl_num_paths'."""
  lowest = np.percentile(distances, PERCENTILES[0], method="lower")
  highest = np.percentile(distances, PERCENTILES[1], method="higher")
  kept = distances[(lowest <= distances) & (distances <= highest)].astype(np.float64)
  return {"ppl": float(kept.mean()), "ppl_std": float(kept.std()), "ppl_num_paths": len(distances)}


def _ends(
  algorithm: Algorithm, params: Any, carry: Any, start: jax.Array, end: jax.Array, labels: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Returns the images at both ends of the step from noise `start`, to or, in W, towards `end`."""
  if not isinstance(algorithm, HasStyles):
    first, second = (algorithm.generate(params, carry, noise, labels) for noise in (start, end))
    return first, second
  w, other = (algorithm.styles(params, noise) for noise in (start, end))
  first, second = (algorithm.from_styles(params, carry, w, start) for w in (w, w + EPSILON * (other - w)))
  return first, second


def _prepared(images: jax.Array) -> jax.Array:
  """Returns RGB in 0..255, float32 [N, H, W, 3], of about 256 pixels at most, of images in about [-1, 1]."""
  images = as_rgb((images + 1) * 127.5)
  factor = max(1, min(images.shape[1:3]) // _LARGEST_SIDE)
  whole = [side - side % factor for side in images.shape[1:3]]
  count, channels = images.shape[0], images.shape[3]
  parts = images[:, : whole[0], : whole[1]].reshape(count, whole[0] // factor, factor, -1, factor, channels)
  return jnp.mean(parts, axis=(2, 4))
