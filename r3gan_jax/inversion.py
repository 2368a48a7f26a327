"""GAN inversion: finds noise from which a generator reproduces an image, by gradient descent from several starts.

From each start, Adam minimises over the noise z

    mean (G(z) - x)^2  +  mean over layers l of |D_l(G(z)) - D_l(x)|^2 / |D_l(x)|^2  +  PRIOR (|z| / sqrt(dim z) - 1)^2

D_l are feature maps of the trained discriminator, which is specific to this domain and resolution and in the checkpoint
(Pan et al. 2020, arXiv 2003.13659, prefer it to VGG; feature matching: Wang et al. 2018, arXiv 1711.11585). With pixels
alone, more starts end in poor minima. Relative errors weigh all layers equally. The loss has many minima, hence several
starts (Bora et al. 2017, arXiv 1703.03208). Pixels outside [-1, 1] are clipped, as in an image file.

The prior is weak. It keeps |z| near the sphere on which Gaussian noise concentrates, where interpolation works. Without
it, |z| grows to twice that radius for images that G cannot reproduce exactly. Noise that fills a box, such as
U(-1, 1), has no prior, but is clipped to the box after every step.

Fine-tuning keeps z and optimises offsets of G's features at 4x4, or of a StyleGAN's w in every layer. They have many
more dimensions than z, so G can then reproduce images outside its range.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import linen as nn

from r3gan_jax.algorithms.base import Algorithm, Carry, Params
from r3gan_jax.algorithms.capabilities import HasBoundedNoise
from r3gan_jax.errors import UserError
from r3gan_jax.networks import stylegan, stylegan2
from r3gan_jax.networks.r3gan import GenerativeBasis
from r3gan_jax.ops.images import to_float

PRIOR = 0.1
LEARNING_RATES = {"noise": 0.2, "offsets": 0.05}
"""Peak learning rates; each rises over the first twentieth of the steps, then decays to 0 along half a cosine."""

_REPORTS = 5


@dataclass(frozen=True)
class Inversion:
  """The result for one image.

  Attributes:
    noise: float32 [noise_dim], from the best start.
    offsets: float32 [offset_dim], of `FineTuned`; [0] without fine-tuning.
    losses: float32 [starts], the final loss of each start.
    loss: the final loss of the best start, after fine-tuning if asked for.
    mse: its mean squared error of pixels in [-1, 1].
  """

  noise: np.ndarray
  offsets: np.ndarray
  losses: np.ndarray
  loss: float
  mse: float


class Inverter:
  """Inverts images one by one, all starts in parallel, on the first device of this process.

  Args:
    discriminator: see `algorithms.capabilities.HasImageFeatures`; None: compare only pixels.
    steps: number of optimiser steps, and of further ones for fine-tuning.
    fine_tune: whether to also optimise the offsets of `FineTuned`, starting from the best noise.

  Raises:
    UserError: see `FineTuned`.
  """

  def __init__(
    self,
    algorithm: Algorithm,
    params: Params,
    carry: Carry,
    discriminator: nn.Module | None,
    steps: int,
    fine_tune: bool = False,
  ):
    self._networks = jax.device_put(jax.device_get((params, carry)), jax.local_devices()[0])
    bounds = algorithm.noise_bounds if isinstance(algorithm, HasBoundedNoise) else None
    self._search = _Descent(algorithm.generate, discriminator, steps, "noise", bounds)
    self._offset_dim, self._fine_tune = 0, None
    if fine_tune:
      fine_tuned = FineTuned(algorithm, params, carry)
      self._offset_dim = fine_tuned.offset_dim
      self._fine_tune = _Descent(fine_tuned.generate, discriminator, steps, "offsets")

  def __call__(self, image: np.ndarray, label: int | None, starts: np.ndarray, title: str = "image") -> Inversion:
    """Inverts `image`, uint8 [H, W, C], of class `label` (None if unconditional), from noise [starts, noise_dim].

    Logs progress under `title`.
    """
    target = to_float(jnp.asarray(image))[None]
    labels = None if label is None else jnp.array([label], jnp.int32)
    latents = {"noise": jnp.asarray(starts), "offsets": jnp.zeros((len(starts), 0))}
    latents, losses, errors = self._search(self._networks, latents, target, labels, title)
    best = int(np.argmin(losses))
    latents = {name: rows[best : best + 1] for name, rows in latents.items()}
    loss, mse = losses[best], errors[best]
    if self._fine_tune is not None:
      latents["offsets"] = jnp.zeros((1, self._offset_dim))
      latents, (loss,), (mse,) = self._fine_tune(self._networks, latents, target, labels, f"{title}, fine-tuning")
    noise, offsets = (np.asarray(latents[name][0]) for name in ("noise", "offsets"))
    return Inversion(noise, offsets, losses, float(loss), float(mse))


class FineTuned:
  """The part of an `Algorithm` that `Sampler` uses, with noise that is z followed by offsets of the first features.

  These are what the noise becomes before anything else happens: R3GAN's features at 4x4, [4, 4, width], or the w of
  every layer of StyleGAN and StyleGAN2, [layers, width] (Abdal et al. 2019, arXiv 1904.03189, call this space W+).

  Attributes:
    noise_dim: length of z.
    shape: of a sample's features.

  Raises:
    UserError: the generator of `algorithm` has neither a `networks.r3gan.GenerativeBasis` nor a `Synthesis`.
  """

  def __init__(self, algorithm: Algorithm, params: Params, carry: Carry):
    self.num_classes = algorithm.num_classes
    self.noise = algorithm.noise
    self._algorithm = algorithm
    noise = jax.eval_shape(lambda: algorithm.noise(jax.random.split(jax.random.key(0), 1)))
    labels = jax.ShapeDtypeStruct((1,), jnp.int32) if algorithm.num_classes else None
    shapes: list[tuple[int, ...]] = []

    def note_shape(features: jax.Array) -> jax.Array:
      shapes.append(features.shape[1:])
      return features

    jax.eval_shape(partial(self._generate, note_shape), params, carry, noise, labels)
    if len(shapes) != 1:
      raise UserError(
        f"{type(algorithm).__name__} has no features at 4x4, and no w, to add offsets to: --fine_tune and edits of "
        "features are for R3GAN, StyleGAN and StyleGAN2"
      )
    self.noise_dim, self.shape = noise.shape[1], shapes[0]

  @property
  def offset_dim(self) -> int:
    """The number of offsets: 4 * 4 * width, or layers * width."""
    return int(np.prod(self.shape))

  def features(self, params: Params, carry: Carry, noise: jax.Array, *inputs: Any) -> jax.Array:
    """Returns what offsets are added to, float32 [N, offset_dim], of z [N, noise_dim]; see `Algorithm.generate`."""
    found = []

    def note(features: jax.Array) -> jax.Array:
      found.append(features.reshape(-1, self.offset_dim).astype(jnp.float32))
      return features

    self._generate(note, params, carry, noise, *inputs)
    return found[0]

  def generate(self, params: Params, carry: Carry, noise: jax.Array, *inputs: Any) -> jax.Array:
    """[N, noise_dim + offset_dim] -> images; see `Algorithm.generate`."""
    noise, offsets = jnp.split(noise, [self.noise_dim], axis=1)
    offsets = offsets.reshape(-1, *self.shape)
    return self._generate(lambda features: features + offsets.astype(features.dtype), params, carry, noise, *inputs)

  def _generate(self, change: Callable[[jax.Array], jax.Array], *inputs: Any) -> jax.Array:
    def intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
      if isinstance(context.module, GenerativeBasis):
        return change(method(*args, **kwargs))
      if isinstance(context.module, (stylegan.Synthesis, stylegan2.Synthesis)):
        w, *others = args
        return method(change(w), *others, **kwargs)
      return method(*args, **kwargs)

    with nn.intercept_methods(intercept):
      return self._algorithm.generate(*inputs)


class _Descent:
  """Runs Adam on the latent `trained` and keeps the other one fixed; compiled once."""

  def __init__(
    self,
    generate: Callable[..., jax.Array],
    discriminator: nn.Module | None,
    steps: int,
    trained: str,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
  ):
    rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATES[trained], steps // 20, steps)
    others = {name: "fixed" for name in LEARNING_RATES if name != trained}
    self._steps = steps
    self._optimizer = optax.partition(
      {"trained": optax.adam(rate), "fixed": optax.set_to_zero()}, {trained: "trained"} | others
    )

    @jax.jit
    def advance(networks: Any, latents: Any, state: Any, steps: int, target: jax.Array, label: jax.Array | None) -> Any:
      params, carry = networks
      labels = None if label is None else jnp.repeat(label, len(latents["noise"]))
      features = None if discriminator is None else partial(feature_maps, discriminator, params["discriminator"])
      wanted = features(target, label) if features else {}

      def losses(latents: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        drawn = generate(params, carry, jnp.concatenate([latents["noise"], latents["offsets"]], axis=1), labels)
        # A straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): clipped pixels keep a gradient.
        drawn += jax.lax.stop_gradient(jnp.clip(drawn, -1, 1) - drawn)
        errors = jnp.mean(jnp.square(drawn - target), axis=(1, 2, 3))
        total = errors
        if bounds is None:
          radius = jnp.sqrt(jnp.mean(jnp.square(latents["noise"]), axis=1))
          total += PRIOR * jnp.square(radius - 1)
        if features:
          total += feature_errors(features(drawn, labels), wanted)
        return total, errors

      def step(_: jax.Array, descent: tuple[Any, Any]) -> tuple[Any, Any]:
        latents, state = descent
        gradients = jax.grad(lambda latents: jnp.sum(losses(latents)[0]))(latents)
        updates, state = self._optimizer.update(gradients, state)
        latents = optax.apply_updates(latents, updates)
        if bounds is not None:
          latents |= {"noise": jnp.clip(latents["noise"], bounds[0][None], bounds[1][None])}
        return latents, state

      latents, state = jax.lax.fori_loop(0, steps, step, (latents, state))
      return latents, state, losses(latents)

    self._advance = advance

  def __call__(
    self, networks: Any, latents: Any, target: jax.Array, label: jax.Array | None, title: str
  ) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns (latents, losses, mean squared errors) after all steps, one row per start."""
    # On the device of the results; otherwise the second call would recompile.
    latents, state = jax.device_put((latents, self._optimizer.init(latents)), jax.local_devices()[0])
    done = 0
    for until in np.unique(np.linspace(0, self._steps, _REPORTS + 1).astype(int))[1:].tolist():
      latents, state, results = self._advance(networks, latents, state, until - done, target, label)
      done = until
      losses, errors = map(np.asarray, results)
      best = np.argmin(losses)
      logging.info("%s: step %d of %d: loss %.4g, mse %.4g", title, done, self._steps, losses[best], errors[best])
    return latents, losses, errors


def feature_maps(
  discriminator: nn.Module, params: Any, images: jax.Array, labels: jax.Array | None
) -> dict[str, jax.Array]:
  """Returns the outputs [N, h, w, c] of the discriminator's layers for images [N, H, W, C], by name of the layer."""

  def is_layer(module: nn.Module, _: str) -> bool:
    return len(module.path) == 1

  _, captured = discriminator.apply(
    {"params": params}, images, labels, capture_intermediates=is_layer, mutable=["intermediates"]
  )
  outputs = {name: calls["__call__"][0] for name, calls in captured["intermediates"].items()}
  return {name: output for name, output in outputs.items() if output.ndim == 4}


def feature_errors(maps: Mapping[str, jax.Array], targets: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the mean over layers of |map - target|^2 / |target|^2: maps [N, h, w, c], targets [1, h, w, c] -> [N]."""

  def square(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(values), axis=(1, 2, 3))

  def error(layer: str) -> jax.Array:
    target = targets[layer].astype(jnp.float32)
    return square(maps[layer].astype(jnp.float32) - target) / square(target)

  return jnp.mean(jnp.stack([error(layer) for layer in targets]), axis=0)
