"""Mean and covariance of features as mergeable float64 sums, so that features need not be kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
  """The count, mean and centred second moment of feature vectors.

  The second moment is about the mean and is shifted when parts are merged: sums of raw outer products would lose the
  digits of a variance much smaller than the squared mean.

  Attributes:
    count: the number of vectors.
    mean: float64 [d].
    scatter: float64 [d, d], the sum of outer products of deviations from `mean`.

  References:
    Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def of(cls, features: np.ndarray) -> Moments:
    """Returns the moments of float [n, d], n >= 1."""
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    features -= mean
    return cls(len(features), mean, features.T @ features)

  def merged(self, other: Moments) -> Moments:
    """Returns the moments of both parts together."""
    count = self.count + other.count
    shift = other.mean - self.mean
    scatter = np.outer(shift * (self.count * other.count / count), shift)
    scatter += self.scatter
    scatter += other.scatter
    return Moments(count, self.mean + shift * (other.count / count), scatter)

  @property
  def covariance(self) -> np.ndarray:
    """The unbiased estimate, float64 [d, d], for count >= 2.

    The divisor is count - 1, as in TTUR's code, pytorch-fid, clean-fid and torch-fidelity, but count in the official
    code.
    """
    return self.scatter / (self.count - 1)
