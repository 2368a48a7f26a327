"""Density, coverage and authenticity of the features in tests/golden/metrics.npz (tests/golden/neighbourhoods.json).

    python -m helpers.neighbourhoods        # records, from tests/, with prdc 0.2 installed, which is by the authors

Authenticity has no package: `authenticity` is its definition, of all distances in float64.
"""

import json
from pathlib import Path

import numpy as np

DIRECTORY = Path(__file__).parent.parent / "golden"
GOLDEN = DIRECTORY / "neighbourhoods.json"

NEIGHBOURS = 5


def features():
  """Returns real and fake features, float32 [1500, 32] and [1200, 32]."""
  with np.load(DIRECTORY / "metrics.npz") as file:
    return file["real"], file["fake"]


def authenticity(real, fake):
  """Returns the fraction of fakes that are farther from the nearest real one than that is from its nearest other."""

  def distances(a, b):
    return np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=-1)

  among_reals = distances(real, real) + np.diag(np.full(len(real), np.inf))
  to_reals = distances(fake, real)
  return float(np.mean(to_reals.min(axis=1) > among_reals.min(axis=1)[to_reals.argmin(axis=1)]))


def record():
  """Writes the numbers."""
  from prdc import compute_prdc

  numbers = compute_prdc(*features(), nearest_k=NEIGHBOURS)
  numbers = {name: float(value) for name, value in numbers.items()} | {"authenticity": authenticity(*features())}
  GOLDEN.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  record()
