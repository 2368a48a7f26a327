"""The recorded numbers of the official implementation (tests/golden), in this project's layout."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r3gan_jax.algorithms.images import Images
from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.interop.official import to_params
from r3gan_jax.networks.r3gan import Discriminator, Generator

GOLDEN = Path(__file__).parent.parent / "golden"

cases = pytest.mark.parametrize("case", ["uncond_16px", "cond_8px"])


class GoldenCase:
  """One recorded run: `arrays` as recorded (images as NHWC), and the algorithm that they belong to."""

  def __init__(self, name: str):
    with np.load(GOLDEN / f"r3gan_{name}.npz") as file:
      self.arrays: dict[str, Any] = dict(file)
    self.meta = json.loads(str(self.arrays["meta.json"]))
    for key in ("real", "fake", "ema_fake", "steps/real"):
      self.arrays[key] = np.moveaxis(self.arrays[key], -3, -1)
    self.labels = self.arrays.get("labels")
    generator, discriminator = self.meta["generator"], self.meta["discriminator"]
    shape = {"widths": generator["widths"], "cardinalities": generator["cardinalities"], "blocks": generator["blocks"]}
    assert shape == {key: discriminator[key][::-1] for key in shape}, "D mirrors G"
    shape = {key: tuple(value) for key, value in shape.items()}
    classes = generator["num_classes"]
    side = self.meta["resolution"]
    self.algorithm = R3GAN(
      Generator(**shape, noise_dim=generator["noise_dim"], num_classes=classes, embed_dim=generator["embed_dim"]),
      Discriminator(**shape, num_classes=classes, embed_dim=discriminator["embed_dim"]),
      noise_dim=generator["noise_dim"],
      images=Images(side, side, 3, classes),
    )

  def params(self, prefix: str, network: str) -> dict[str, Any]:
    """The tree recorded under `prefix` ("G", "dgrad", "steps/D", ...) of a "generator" or "discriminator"."""
    state = {
      key.removeprefix(f"{prefix}/"): value for key, value in self.arrays.items() if key.startswith(f"{prefix}/")
    }
    return to_params(getattr(self.algorithm, network), state)


@cache
def load(name: str) -> GoldenCase:
  return GoldenCase(name)


def relative_errors(actual: Any, expected: Any) -> dict[str, float]:
  """Leaf path -> norm of the difference over the norm of the expected leaf; "all": of the whole tree as one vector."""
  differences, norms = {}, {}
  actual = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(actual)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
    name, leaf = jax.tree_util.keystr(path), np.asarray(leaf, np.float64)
    differences[name] = np.linalg.norm(np.asarray(actual.pop(name), np.float64) - leaf)
    norms[name] = np.linalg.norm(leaf)
  assert not actual, f"unexpected leaves: {list(actual)}"
  errors = {name: differences[name] / max(norms[name], 1e-30) for name in norms}
  return errors | {"all": np.linalg.norm([*differences.values()]) / max(np.linalg.norm([*norms.values()]), 1e-30)}


def assert_trees_close(actual: Any, expected: Any, relative: float) -> None:
  """Every leaf, as a vector, is within `relative` of the expected one."""
  errors = relative_errors(actual, expected)
  worst = max(errors, key=lambda name: errors[name])
  assert errors[worst] <= relative, f"{worst}: relative error {errors[worst]:.2e}"
