"""A small CNN that classifies digits: the classifier and feature network of (stacked) MNIST and Fashion-MNIST.

`python -m r3gan_jax.cli.train_classifier` trains it, in minutes on two CPU cores. Every channel of an image is a digit.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from r3gan_jax.errors import UserError, one_line
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.networks.precise import PRECISION, Conv
from r3gan_jax.storage import write_npz

SIDE = 32
UNPADDED = 28
"""The side of MNIST's own images; they are padded with zeros, as for training."""
CLASSES = 10
FEATURES = 64

_BATCH = 128
_EVALUATION_BATCH = 1000
_LEARNING_RATE = 2e-3
_COMMAND = "python -m r3gan_jax.cli.train_classifier"


class DigitsCNN(nn.Module):
  """The network: uint8 [N, 32, 32, 1] -> features [N, 64], logits [N, 10], float32."""

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = images.astype(jnp.float32) / 255
    for n, width in enumerate((32, 64, 64), start=1):
      x = nn.relu(Conv(width, (3, 3), name=f"conv{n}")(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    features = nn.relu(nn.Dense(FEATURES, precision=PRECISION, name="features")(x.reshape(len(x), -1)))
    return features, nn.Dense(CLASSES, precision=PRECISION, name="logits")(features)


def train(digits: np.ndarray, labels: np.ndarray, epochs: int, seed: int = 0) -> Any:
  """Trains with Adam, the learning rate decaying to 0 along a cosine; returns the parameters.

  Args:
    digits: uint8 [n, 32, 32].
    labels: int [n] in 0..9.
    epochs: passes over the digits in batches of 128; the rest of each pass is dropped.
    seed: for the initialisation and the order.
  """
  network, images = DigitsCNN(), digits[..., None]
  params = jax.jit(network.init)(jax.random.key(seed), images[:1])["params"]
  steps = len(images) // _BATCH
  optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, epochs * steps))

  @jax.jit
  def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
    def loss(params: Any) -> jax.Array:
      logits = network.apply({"params": params}, images)[1]
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  random = np.random.default_rng(seed)
  for _ in range(epochs):
    for chosen in random.permutation(len(images))[: steps * _BATCH].reshape(steps, _BATCH):
      params, state = step(params, state, images[chosen], labels[chosen])
  return params


@jax.jit
def _run(params: Any, images: jax.Array) -> Any:
  return DigitsCNN().apply({"params": params}, images)


def classify(params: Any, digits: np.ndarray) -> np.ndarray:
  """Classifies digits: uint8 [n, 32, 32] or [n, 28, 28] -> int [n]."""
  batches = range(0, len(digits), _EVALUATION_BATCH)
  logits = [_run(params, _padded(digits[start : start + _EVALUATION_BATCH])[..., None])[1] for start in batches]
  return np.argmax(np.concatenate(logits), -1)


def save(path: Path, params: Any, test_accuracy: float) -> None:
  """Writes parameters and accuracy as an .npz."""
  write_npz(path, flatten_dict(params, sep="/") | {"test_accuracy": np.float64(test_accuracy)})


def load(path: Path) -> tuple[Any, float]:
  """Returns (parameters, test accuracy) from a file that `save` wrote.

  Raises:
    UserError: there is no such file, or it has other contents.
  """
  if not path.exists():
    raise UserError(f"{path} does not exist: run {_COMMAND}")
  try:
    with np.load(path) as file:
      arrays = dict(file)
  except Exception as error:  # a broken file can raise anything
    raise UserError(f"{path} cannot be read ({one_line(error)}): run {_COMMAND}") from None
  images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 1), jnp.uint8)
  abstract = jax.eval_shape(DigitsCNN().init, jax.random.key(0), images)["params"]
  expected = {"test_accuracy": ()} | {name: leaf.shape for name, leaf in flatten_dict(abstract, sep="/").items()}
  for name, shape in expected.items():
    if name not in arrays or arrays[name].shape != shape:
      raise UserError(f"{path} has no {name} of shape {shape}: run {_COMMAND}")
  accuracy = float(arrays.pop("test_accuracy"))
  return unflatten_dict(arrays, sep="/"), accuracy


def feature_network(params: Any, name: str) -> FeatureNetwork:
  """Returns the network uint8 [N, 32, 32, C] -> 'features' [N, C * 64], 'logits' [N, C, 10]; one digit per channel.

  Images may also be [N, 28, 28, C].
  """

  def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    count, channels = images.shape[0], images.shape[3]
    digits = _padded(jnp.moveaxis(images, -1, 1).reshape(count * channels, *images.shape[1:3]))[..., None]
    features, logits = _run(params, digits)
    return {"features": features.reshape(count, -1), "logits": logits.reshape(count, channels, CLASSES)}

  return FeatureNetwork(name, apply, params, "none")


def _padded(digits: Any) -> jax.Array:
  """Returns digits [n, 32, 32], of [n, 28, 28] with zeros around them."""
  height, width = digits.shape[1:]
  if (height, width) == (UNPADDED, UNPADDED):
    margin = (SIDE - UNPADDED) // 2
    return jnp.pad(digits, ((0, 0), (margin, margin), (margin, margin)))
  if (height, width) != (SIDE, SIDE):
    raise UserError(
      f"the digit classifier needs images of {SIDE}x{SIDE} or {UNPADDED}x{UNPADDED}, not {height}x{width}: prepare "
      "them at that size"
    )
  return jnp.asarray(digits)
