"""The Inception score."""

import numpy as np

from r3gan_jax.errors import UserError


class InceptionScore:
  """Computes exp(E KL(p(class | image) || p(class))) for `num_splits` random parts of `num_images` images.

  Parts in the order of files would depend on it: those of a folder sorted by class have few classes each. As in
  torch-fidelity, `numpy.random.RandomState(seed)` shuffles the images, which are split evenly then. Logits are added in
  batches, and only sums are kept: E KL is the entropy of the mean p minus the mean entropy.

  Raises:
    UserError: fewer images than splits.

  References:
    Salimans et al., Improved Techniques for Training GANs, 2016.
  """

  def __init__(self, num_images: int, seed: int = 0, num_splits: int = 10):
    if num_images < num_splits:
      raise UserError(
        f"the Inception score needs at least {num_splits} images, one per split, but has {num_images}: give more"
      )
    bounds = np.arange(num_splits + 1) * num_images // num_splits
    self._sizes = np.diff(bounds)
    self._splits = np.empty(num_images, np.int64)  # the part of each image
    self._splits[np.random.RandomState(seed).permutation(num_images)] = np.repeat(np.arange(num_splits), self._sizes)
    self._seen = 0
    self._probabilities: list[np.ndarray | float] = [0.0] * num_splits
    self._entropies = [0.0] * num_splits

  def add(self, logits: np.ndarray) -> None:
    """Adds the logits of the next images, float [n, classes]; of Inception without bias, as in Google's graph."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    entropies = -(p * log_p).sum(axis=1)
    splits = self._splits[self._seen : self._seen + len(logits)]
    for split in np.unique(splits):
      self._probabilities[split] += p[splits == split].sum(axis=0)
      self._entropies[split] += float(entropies[splits == split].sum())
    self._seen += len(logits)

  def result(self) -> dict[str, float]:
    """Returns 'inception_score' and its '_std' over the splits, their number, and 'num_fake', after all images."""
    if self._seen != len(self._splits):
      raise ValueError(f"{self._seen} of {len(self._splits)} images seen")
    scores = []
    for size, total, entropy in zip(self._sizes, self._probabilities, self._entropies, strict=True):
      mean = np.asarray(total) / size
      # p log p -> 0 for p -> 0.
      scores.append(np.exp(-(mean * np.log(np.maximum(mean, 1e-300))).sum() - entropy / size))
    return {
      "inception_score": float(np.mean(scores)),
      "inception_score_std": float(np.std(scores)),
      "inception_score_splits": len(scores),
      "num_fake": self._seen,
    }
