"""What a metric needs to know of a feature network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class FeatureNetwork:
  """A network whose activations the metrics compare.

  Attributes:
    name: of the network, for caches and reports.
    apply: (params, uint8 [n, H, W, C]) -> 'features' float32 [n, d] and, of a classifier, 'logits_without_bias'
      float32 [n, classes].
    params: a pytree.
    resize: the name of the resize in front of it.
  """

  name: str
  apply: Callable[[Any, jax.Array], dict[str, jax.Array]]
  params: Any
  resize: str
