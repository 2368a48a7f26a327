"""A small CNN that classifies digits: the classifier and feature network of (stacked) MNIST and Fashion-MNIST.

`python -m r3gan_jax.cli.train_classifier` trains it, in minutes on two CPU cores. Every channel of an image is a digit.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from r3gan_jax.metrics import classifiers
from r3gan_jax.metrics.features import FeatureNetwork, resize
from r3gan_jax.networks.precise import PRECISION, Conv

SIDE = 32
UNPADDED = 28
"""The side of MNIST's own images; they are padded with zeros, as for training."""
CLASSES = 10
FEATURES = 64

_BATCH = 128
_EVALUATION_BATCH = 1000


class DigitsCNN(nn.Module):
  """The network: [N, 32, 32, 1] in 0..255 -> features [N, 64], logits [N, 10], float32."""

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = images.astype(jnp.float32) / 255
    for n, width in enumerate((32, 64, 64), start=1):
      x = nn.relu(Conv(width, (3, 3), name=f"conv{n}")(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    features = nn.relu(nn.Dense(FEATURES, precision=PRECISION, name="features")(x.reshape(len(x), -1)))
    return features, nn.Dense(CLASSES, precision=PRECISION, name="logits")(features)


def train(digits: np.ndarray, labels: np.ndarray, epochs: int, seed: int = 0) -> Any:
  """Trains the network, see `classifiers.fit`; returns the parameters.

  Args:
    digits: uint8 [n, 32, 32].
    labels: int [n] in 0..9.
    epochs: passes over the digits in batches of 128; the rest of each pass is dropped.
    seed: for the initialisation and the order.
  """
  images, steps = digits[..., None], len(digits) // _BATCH
  random = np.random.default_rng(seed)
  orders = (random.permutation(len(images))[: steps * _BATCH].reshape(steps, _BATCH) for _ in range(epochs))
  batches = ((images[chosen], labels[chosen]) for order in orders for chosen in order)
  return classifiers.fit(DigitsCNN(), batches, epochs * steps, images.shape[1:], seed)


@jax.jit
def _run(params: Any, images: jax.Array) -> Any:
  return DigitsCNN().apply({"params": params}, images)


def classify(params: Any, digits: np.ndarray) -> np.ndarray:
  """Classifies digits: uint8 [n, H, W] -> int [n]; see `feature_network` for H and W."""
  batches = range(0, len(digits), _EVALUATION_BATCH)
  logits = [_run(params, _fitted(digits[start : start + _EVALUATION_BATCH, ..., None]))[1] for start in batches]
  return np.argmax(np.concatenate(logits), -1)


def save(path: Path, params: Any, test_accuracy: float) -> None:
  """Writes parameters and accuracy as an .npz."""
  classifiers.save(path, params, {"test_accuracy": test_accuracy})


def load(path: Path) -> tuple[Any, float]:
  """Returns (parameters, test accuracy) from a file that `save` wrote.

  Raises:
    UserError: there is no such file, or it has other contents.
  """
  params, facts = classifiers.load(path, {"test_accuracy": ()})
  classifiers.check(path, params, abstract_params())
  return params, float(facts["test_accuracy"])


def abstract_params() -> Any:
  """Returns the parameters as `jax.ShapeDtypeStruct`s."""
  images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 1), jnp.uint8)
  return jax.eval_shape(DigitsCNN().init, jax.random.key(0), images)["params"]


def feature_network(params: Any, name: str) -> FeatureNetwork:
  """Returns the network uint8 [N, H, W, C] -> 'features' [N, C * 64], 'logits' [N, C, 10]; one digit per channel.

  Images of 28x28 are padded with zeros to 32x32, as MNIST's are; those of other sizes are resized ("pytorch").
  """

  def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    count, channels = images.shape[0], images.shape[3]
    digits = jnp.moveaxis(images, -1, 1).reshape(count * channels, *images.shape[1:3], 1)
    features, logits = _run(params, _fitted(digits))
    return {"features": features.reshape(count, -1), "logits": logits.reshape(count, channels, CLASSES)}

  return FeatureNetwork(name, apply, params, "pytorch")


def _fitted(digits: Any) -> jax.Array:
  """Returns digits [n, 32, 32, 1], of [n, H, W, 1]; see `feature_network`."""
  height, width = digits.shape[1:3]
  if (height, width) == (UNPADDED, UNPADDED):
    margin = (SIDE - UNPADDED) // 2
    return jnp.pad(digits, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
  return jnp.asarray(digits) if (height, width) == (SIDE, SIDE) else resize(digits, SIDE, "pytorch")
