"""R3GAN: the regularised relativistic GAN ([P] sections 2 and 3).

One iteration is two phases. With z standard normal, A1 and A2 independent augmentation draws:

    D    fake = G(z)
         mean( softplus(-(D(A1(real)) - D(A2(fake)))) + gamma / 2 (R1 + R2) )
    G    on another real batch and z, with the D just updated:
         mean( softplus(-(D(A1(G(z))) - D(A2(real)))) )

The fake takes the real sample's label.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from r3gan_jax.algorithms.base import Average, Batch, Carry, Knobs, Params, Phase, split_keys
from r3gan_jax.losses.adversarial import RELATIVISTIC, AdversarialLoss
from r3gan_jax.losses.penalties import PenalisedGradient, directional
from r3gan_jax.ops.images import to_float

Augment = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(images [N, H, W, C], rngs [N], probability) -> augmented images; differentiable, each sample by itself."""


@dataclass(frozen=True)
class R3GAN:
  """The algorithm; an `algorithms.base.Algorithm`.

  Attributes:
    generator: (z [N, noise_dim], labels) -> images [N, H, W, C].
    discriminator: (images, labels) -> logits [N].
    noise_dim: length of z.
    image_shape: (H, W, C).
    num_classes: 0 if unconditional.
    loss: the adversarial loss; the paper's is relativistic.
    penalties: which of "r1" (on reals) and "r2" (on fakes) D pays; both are reported in any case.
    augment: applied to everything that D sees, with the probability of the knob "augment_p"; None: nothing is.
    penalised_gradient: how D's gradient is computed: losses.penalties.directional, or the slower grad_of_grad.
  """

  generator: nn.Module
  discriminator: nn.Module
  noise_dim: int
  image_shape: tuple[int, int, int]
  num_classes: int = 0
  loss: AdversarialLoss = RELATIVISTIC
  penalties: tuple[str, ...] = ("r1", "r2")
  augment: Augment | None = None
  penalised_gradient: Callable[..., PenalisedGradient] = directional

  def __post_init__(self) -> None:
    if self.penalised_gradient is directional and not getattr(self.discriminator, "piecewise_linear", False):
      raise ValueError(
        f"losses.penalties.directional needs a discriminator that declares itself piecewise_linear, which "
        f"{type(self.discriminator).__name__} does not: use grad_of_grad"
      )

  @property
  def phases(self) -> Sequence[Phase]:
    return (
      Phase("discriminator", ("discriminator",), self._discriminator_gradients, counts_images=True),
      Phase("generator", ("generator",), self._generator_gradients),
    )

  @property
  def averages(self) -> Mapping[str, Average]:
    return {"generator": Average("generator", "ema_half_life")}

  @property
  def leading_rows(self) -> Mapping[str, Mapping[str, int]]:
    # G's first linear map: the rows of z, then those of the class embedding, if there is one.
    return {"generator": {"basis/linear/kernel": self.noise_dim}}

  def init(self, rng: jax.Array) -> tuple[dict[str, Any], Carry]:
    generator_rng, discriminator_rng = jax.random.split(rng)
    z, images = jnp.zeros((1, self.noise_dim)), jnp.zeros((1, *self.image_shape))
    labels = jnp.zeros((1,), jnp.int32) if self.num_classes else None
    params = {
      "generator": self.generator.init(generator_rng, z, labels)["params"],
      "discriminator": self.discriminator.init(discriminator_rng, images, labels)["params"],
    }
    return params, {}

  def noise(self, rngs: jax.Array) -> jax.Array:
    return jax.vmap(lambda rng: jax.random.normal(rng, (self.noise_dim,)))(rngs)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Truncation, not of the paper, multiplies the noise.

    The features at 4x4 are linear in it, so they move towards their mean (of the class), as StyleGAN's w does.
    """
    del carry
    return self._generate(params["generator"], truncation * noise, labels)

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, rngs: jax.Array, knobs: Knobs
  ) -> tuple[Params, Carry, dict[str, jax.Array]]:
    z_rngs, real_rngs, fake_rngs = split_keys(rngs, 3)
    labels = batch.get("label")
    real = to_float(batch["image"])
    fake = self._generate(params["generator"], self.noise(z_rngs), labels)
    # D treats samples one by one: reals and fakes go through it as one batch.
    images = jnp.concatenate([real, fake])
    augment_rngs = jnp.concatenate([real_rngs, fake_rngs])
    both_labels = None if labels is None else jnp.concatenate([labels, labels])

    def critic(discriminator: Any, images: jax.Array, bias_scale: jax.Array) -> jax.Array:
      return self._judge(discriminator, images, both_labels, bias_scale)

    def adversarial(logits: jax.Array) -> jax.Array:
      return jnp.mean(self.loss.discriminator(*jnp.split(logits, 2)))

    paid = jnp.array([float(name in self.penalties) for name in ("r1", "r2")])
    gradients, logits, penalties = self.penalised_gradient(
      critic,
      params["discriminator"],
      images,
      lambda images: self._augment(images, augment_rngs, knobs),
      adversarial,
      knobs["gamma"] / len(real) * jnp.repeat(paid, len(real)),
    )
    real_logits, fake_logits = jnp.split(logits, 2)
    r1, r2 = jnp.split(penalties, 2)
    metrics = {
      "loss": jnp.mean(
        self.loss.discriminator(real_logits, fake_logits) + knobs["gamma"] / 2 * (paid[0] * r1 + paid[1] * r2)
      ),
      "adversarial_loss": adversarial(logits),
      "r1": jnp.mean(r1),
      "r2": jnp.mean(r2),
      "real_logits": jnp.mean(real_logits),
      "fake_logits": jnp.mean(fake_logits),
      "relativistic_sign": jnp.mean(jnp.sign(real_logits - fake_logits)),
    }
    return {"discriminator": gradients}, carry, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, rngs: jax.Array, knobs: Knobs
  ) -> tuple[Params, Carry, dict[str, jax.Array]]:
    z_rngs, real_rngs, fake_rngs = split_keys(rngs, 3)
    labels = batch.get("label")
    z = self.noise(z_rngs)
    real = self._augment(to_float(batch["image"]), real_rngs, knobs)
    real_logits = self._judge(params["discriminator"], real, labels)

    def loss(generator: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
      fake = self._augment(self._generate(generator, z, labels), fake_rngs, knobs)
      fake_logits = self._judge(params["discriminator"], fake, labels)
      total = jnp.mean(self.loss.generator(real_logits, fake_logits))
      return total, {
        "loss": total,
        "relativistic_sign": jnp.mean(jnp.sign(fake_logits - real_logits)),
      }

    gradients, metrics = jax.grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, carry, metrics

  def _generate(self, generator: Any, z: jax.Array, labels: jax.Array | None) -> jax.Array:
    return cast(jax.Array, self.generator.apply({"params": generator}, z, labels))

  def _judge(
    self, discriminator: Any, images: jax.Array, labels: jax.Array | None, bias_scale: jax.Array | None = None
  ) -> jax.Array:
    return cast(jax.Array, self.discriminator.apply({"params": discriminator}, images, labels, bias_scale))

  def _augment(self, images: jax.Array, rngs: jax.Array, knobs: Knobs) -> jax.Array:
    return images if self.augment is None else self.augment(images, rngs, knobs["augment_p"])
