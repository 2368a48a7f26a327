"""The recorded numbers of the official implementation (tests/golden), in this project's layout."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r3gan_jax.algorithms.r3gan import R3GAN
from r3gan_jax.networks.r3gan import Discriminator, Generator

GOLDEN = Path(__file__).parent / "golden"

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
    self.stages = len(self.meta["generator"]["widths"])
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
      image_shape=(side, side, 3),
      num_classes=classes,
    )

  def params(self, prefix: str, network: str) -> dict[str, Any]:
    """The tree recorded under `prefix` ("G", "dgrad", "steps/D", ...) of a "generator" or "discriminator"."""
    tree: dict[str, Any] = {}
    for key, value in self.arrays.items():
      name = key.removeprefix(prefix + "/Model.")
      if name == key or name.endswith("Kernel"):
        continue
      *path, leaf = self._path(name, network)
      node = tree
      for part in path:
        node = node.setdefault(part, {})
      node[leaf] = _to_our_layout(value, name)
    return tree

  def _path(self, name: str, network: str) -> list[str]:
    """The official parameter name as a path in our tree."""
    for official, ours in (
      ("ExtractionLayer", "from_image"),
      ("AggregationLayer", "to_image"),
      ("EmbeddingLayer", "class_embedding"),
    ):
      if name.startswith(official):
        return [ours, "kernel"]
    match = re.fullmatch(r"MainLayers\.(\d+)\.Layers\.(\d+)\.(.+)", name)
    assert match, name
    stage, layer, rest = int(match[1]), int(match[2]), match[3]
    if rest in ("Basis", "Basis.weight"):
      return ["basis", "constant"]
    if rest == "LinearLayer.weight":
      return ["basis", "linear", "kernel"]
    resolution = stage if network == "generator" else self.stages - 1 - stage
    if rest == "LinearLayer.Layer.weight":  # a transition; D's stands at the end of the finer stage
      return (
        [f"up_{resolution}", "conv", "kernel"]
        if network == "generator"
        else [f"down_{resolution - 1}", "conv", "kernel"]
      )
    block = layer - 1 if network == "generator" else layer
    leaf = re.sub(r"(LinearLayer|NonLinearity)(\d).*", lambda m: {"L": "conv", "N": "bias"}[m[1][0]] + m[2], rest)
    return [f"stage_{resolution}_block_{block}", leaf]


def _to_our_layout(value: np.ndarray, name: str) -> np.ndarray:
  if value.ndim == 1:
    return value
  if value.ndim == 2:  # linear: [out, in] -> [in, out]
    return value.T
  if name.endswith("Basis"):  # [C, H, W] -> [H, W, C]
    return value.transpose(1, 2, 0)
  if name.endswith("Basis.weight"):  # depthwise [C, 1, H, W] -> [H, W, C]
    return value[:, 0].transpose(1, 2, 0)
  value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
  return value[0, 0] if value.shape[:2] == (1, 1) else value


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
  whole = np.linalg.norm(list(differences.values())) / np.linalg.norm(list(norms.values()))
  return {name: differences[name] / max(norms[name], 1e-30) for name in norms} | {"all": whole}


def assert_trees_close(actual: Any, expected: Any, relative: float) -> None:
  """Every leaf, as a vector, is within `relative` of the expected one."""
  errors = relative_errors(actual, expected)
  worst = max(errors, key=lambda name: errors[name])
  assert errors[worst] <= relative, f"{worst}: relative error {errors[worst]:.2e}"
