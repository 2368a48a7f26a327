"""A small residual network that classifies images or latents of any size: it guides G, or D is aligned with it.

`python -m r3gan_jax.cli.train_classifier --config=RECIPE` trains it on the data of a recipe. It is differentiable in
the image, and without normalisation, so it treats images independently.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from r3gan_jax.errors import UserError
from r3gan_jax.metrics import classifiers
from r3gan_jax.metrics.features import FeatureNetwork
from r3gan_jax.networks.precise import PRECISION, Conv
from r3gan_jax.ops.images import to_float
from r3gan_jax.storage import as_path

FEATURES = 128

_NARROWEST, _WIDEST = 32, 128
_SMALLEST_SIDE = 4
_EVALUATION_BATCH = 500
_FACTS = {"image_shape": (3,), "classes": (), "test_accuracy": ()}
"""The facts about its network that a file has, and the shape of each."""


class ResidualCNN(nn.Module):
  """The network: images [N, H, W, C], uint8 or float -> features [N, 128], logits [N, classes], float32.

  Each stage is a residual block, and the next has half the side and twice the channels, 32 to 128, while the shorter
  side is at least 4.
  """

  classes: int

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = Conv(_NARROWEST, (3, 3), name="from_image")(to_float(images))
    stage = 0
    while True:
      width = min(_WIDEST, _NARROWEST << stage)
      y = Conv(width, (3, 3), name=f"stage_{stage}_conv_0")(nn.relu(x))
      y = Conv(width, (3, 3), name=f"stage_{stage}_conv_1", kernel_init=nn.initializers.zeros)(nn.relu(y))
      x = (x if x.shape[-1] == width else Conv(width, (1, 1), name=f"stage_{stage}_skip")(x)) + y
      if min(x.shape[1:3]) < 2 * _SMALLEST_SIDE:
        break
      x, stage = nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4, stage + 1
    features = nn.relu(nn.Dense(FEATURES, precision=PRECISION, name="features")(jnp.mean(nn.relu(x), (1, 2))))
    return features, nn.Dense(self.classes, precision=PRECISION, name="logits")(features)


def train(batches: classifiers.Batches, steps: int, shape: tuple[int, ...], classes: int, seed: int = 0) -> Any:
  """Trains the network, see `classifiers.fit`; returns the parameters."""
  return classifiers.fit(ResidualCNN(classes), batches, steps, shape, seed)


def classify(params: Any, images: np.ndarray) -> np.ndarray:
  """Classifies images [n, H, W, C], uint8 or float -> int [n]."""
  run = jax.jit(outputs)
  batches = range(0, len(images), _EVALUATION_BATCH)
  return np.concatenate([jnp.argmax(run(params, images[at : at + _EVALUATION_BATCH])["logits"], -1) for at in batches])


def outputs(params: Any, images: jax.Array) -> dict[str, jax.Array]:
  """Returns 'features' [N, 128] and 'logits' [N, K], differentiable in images, uint8 or float [N, H, W, C]."""
  classes = params["logits"]["bias"].shape[0]
  features, logits = ResidualCNN(classes).apply({"params": params}, images)
  return {"features": features, "logits": logits}


def abstract_params(shape: tuple[int, int, int], classes: int) -> Any:
  """Returns the parameters for images of (H, W, C) as `jax.ShapeDtypeStruct`s."""
  images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return jax.eval_shape(ResidualCNN(classes).init, jax.random.key(0), images)["params"]


def save(path: epath.PathLike, params: Any, shape: tuple[int, int, int], classes: int, accuracy: float) -> None:
  """Writes parameters, (H, W, C) of the images, number of classes and held-out accuracy as an .npz."""
  classifiers.save(path, params, {"image_shape": shape, "classes": classes, "test_accuracy": accuracy})


def load(path: epath.PathLike, shape: tuple[int, int, int], classes: int = 0) -> Any:
  """Returns the parameters from a file that `save` wrote.

  Args:
    shape: (H, W, C) of the images that it has to see.
    classes: that it has to know; 0: any number.

  Raises:
    UserError: there is no such file, it has other contents, or it is of other images or classes.
  """
  params, facts = classifiers.load(path, _FACTS)
  seen, known = tuple(facts["image_shape"].tolist()), int(facts["classes"])
  for what, of_file, of_run in (("images of", seen, shape), ("a number of classes of", known, classes or known)):
    if of_file != of_run:
      raise UserError(f"{path} is for {what} {of_file}, but the run has {of_run}: train one with {classifiers.COMMAND}")
  classifiers.check(path, params, abstract_params(shape, known))
  return params


def feature_network(path: epath.PathLike, shape: tuple[int, int, int]) -> FeatureNetwork:
  """Returns the network in a file: uint8 [N, H, W, C] -> 'features' [N, P * 128], 'logits' [N, P, K].

  P is 1. A network of one channel also sees images of several, such as stacked digits: each channel is an image of its
  own, and P = C.

  Args:
    path, shape: see `load`; so are the errors.
  """
  height, width, channels = shape
  _, facts = classifiers.load(path, _FACTS)
  parts = channels if tuple(facts["image_shape"].tolist()) == (height, width, 1) else 1
  params = load(path, (height, width, channels // parts))

  def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    count = images.shape[0]
    apart = jnp.moveaxis(images.reshape(count, height, width, channels // parts, parts), -1, 1)
    found = outputs(params, apart.reshape(count * parts, height, width, channels // parts))
    return {"features": found["features"].reshape(count, -1), "logits": found["logits"].reshape(count, parts, -1)}

  return FeatureNetwork(as_path(path).stem, apply, params, "none")
