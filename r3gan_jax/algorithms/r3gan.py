"""R3GAN: the regularised relativistic GAN ([P] sections 2 and 3).

One iteration is two phases. With z ~ N(0, I), and A1 and A2 independently drawn augmentations:

    D    fake = G(z)
         mean( softplus(-(D(A1(real)) - D(A2(fake)))) + gamma / 2 (R1 + R2) )
    G    with another real batch and z, and the updated D:
         mean( softplus(-(D(A1(G(z))) - D(A2(real)))) )

A fake has the label of the real sample that it is paired with.

Three settings that are not the paper's, all off by default: docs/guidance.md says more.

    synced_augment    A1 = A2 for the two images of a pair
    alignment         D's loss  - weight * mean cos( h(D's features of A1(real)), F(real) ), F pretrained
    guidance          G's loss  - weight * mean log C(label | G(z)), C a pretrained classifier
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from re import match
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from r3gan_jax.algorithms.alignment import ALIGNMENT, Alignment
from r3gan_jax.algorithms.base import (
  GAN,
  Average,
  Batch,
  Carry,
  Hyperparameters,
  Metrics,
  Params,
  Phase,
  PowerFunctionAverage,
  bfloat16_stages,
  check_samples_apart,
  cosines,
  normal_noise,
  split_keys,
)
from r3gan_jax.algorithms.capabilities import HasImageDtype
from r3gan_jax.algorithms.images import Images, first_stage
from r3gan_jax.augment import colour
from r3gan_jax.augment.parameters import TRANSFORMS
from r3gan_jax.augment.pipeline import augment
from r3gan_jax.errors import UserError
from r3gan_jax.losses.adversarial import LOSSES, RELATIVISTIC, AdversarialLoss
from r3gan_jax.losses.penalties import PENALISED_GRADIENTS, PenalisedGradient, directional
from r3gan_jax.losses.pretrained import cross_entropy
from r3gan_jax.networks.r3gan import Discriminator, Generator
from r3gan_jax.networks.roadmap import SkeletonDiscriminator, SkeletonGenerator, SkipGenerator
from r3gan_jax.ops.grouped_conv import ALGORITHMS as GROUPED_CONV_ALGORITHMS
from r3gan_jax.ops.images import to_float
from r3gan_jax.optimizers import adam_without_momentum
from r3gan_jax.pretrained import PretrainedNetwork, pretrained_features, residual_classifier
from r3gan_jax.schedules import Schedule, inverse_sqrt
from r3gan_jax.settings import Pair, below_one, not_negative, one_of, positive, probability, relative_std, setting

NETWORKS = ("r3gan", "r3gan_output_skips", "stylegan2_skeleton")
"""The networks of R3GAN, and those of earlier roadmap configurations: networks/roadmap.py."""

Augment = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(images [N, H, W, C], keys [N], probability) -> augmented images; differentiable, without coupling samples."""


PHASES = ("discriminator", "generator")

GUIDANCE = "guidance"
"""The name of the pretrained classifier."""


@dataclass(frozen=True)
class Settings:
  """`config.gan` of R3GAN; tuples list the stages from 4x4 upward, for G and D alike."""

  network: str = setting("r3gan", one_of(NETWORKS))
  widths: tuple[int, ...] = setting((768, 768, 768, 768), positive)  # channels of each stage
  cardinalities: tuple[int, ...] = setting((96, 96, 96, 96), positive)  # groups of its 3x3 convolutions
  blocks: tuple[int, ...] = setting((2, 2, 2, 2), positive)  # residual blocks of each stage
  expansion: float = setting(2.0, positive)  # of a block's inner layers over its outer ones
  noise_dim: int = setting(64, positive)  # length of z, and of G's class embedding
  bfloat16_stages: int = setting(4, not_negative)  # the highest-resolution ones
  bfloat16: str = setting("auto", one_of(("auto", "on", "off")))  # "auto": on except on CPUs
  # The algorithm of the 3x3 convolutions: ops/grouped_conv.py
  grouped_conv: str = setting("auto", one_of(("auto", "fused", *GROUPED_CONV_ALGORITHMS)))

  # How many stages stay as config.init_from has them: the highest-resolution ones of D (FreezeD, Mo et al. 2020,
  # arXiv 2002.10964), and the lowest-resolution ones of G.
  freeze_discriminator: int = setting(0, not_negative)
  freeze_generator: int = setting(0, not_negative)

  loss: str = setting("relativistic", one_of(LOSSES))
  penalties: tuple[str, ...] = setting(("r1", "r2"), one_of(("r1", "r2")))
  # Two ways to the same gradient; "directional" is the faster one.
  penalised_gradient: str = setting("directional", one_of(PENALISED_GRADIENTS))

  # Of G's averages with power functions as weights, for cli.posthoc_ema: relative standard deviations, such as
  # (0.05, 0.1).
  ema_stds: tuple[float, ...] = setting((), relative_std)

  # "inverse_sqrt": that of EDM2 (Karras et al. 2024, arXiv 2312.02696, equation 67) in place of the cosine below, a
  # linear ramp to one number, `learning_rate`, and from some images on a decay by the inverse square root.
  learning_rate_schedule: str = setting("cosine", one_of(("cosine", "inverse_sqrt")))
  learning_rate_ramp_images: int = setting(10_000_000, positive)
  learning_rate_decay_images: int = setting(143_360_000, positive)  # 70,000 batches of 2048, as for ImageNet there

  # Schedules, (from, to): half a cosine over the burn-in, then constant.
  burn_in_images: int = setting(20_000_000, positive)
  learning_rate: Pair = setting((2e-4, 5e-5), not_negative)
  beta2: Pair = setting((0.9, 0.99), below_one)
  gamma: Pair = setting((1.0, 0.1), not_negative)  # weight of R1 and R2
  ema_half_life: Pair = setting((0.0, 500_000.0), not_negative)  # images
  augment_p: Pair = setting((0.0, 0.0), probability)  # of each augmentation, before its multiplier
  # Multipliers of augment_p: r3gan_jax/augment/parameters.py
  augment: dict[str, float] = setting(
    {
      "x_flip": 1.0,
      "rotate90": 1.0,
      "integer_translation": 1.0,
      "isotropic_scale": 1.0,
      "rotation": 1.0,
      "anisotropic_scale": 1.0,
      "fractional_translation": 1.0,
      "brightness": 0.5,
      "contrast": 0.5,
      "luma_flip": 0.5,
      "hue": 0.5,
      "saturation": 0.5,
      "image_filter": 0.0,
      "noise": 0.0,
      "cutout": 1.0,
    },
    not_negative,
  )
  # Off in the paper, see docs/guidance.md: the real and the fake of a pair are augmented alike;
  synced_augment: bool = setting(False)
  # D's features of reals after this stage, counted from 0 at 4x4, are aligned with those of a pretrained network:
  # "inception", "vgg16", "digits", "pixels", or FILE.npz of cli.train_classifier --config (REPA, arXiv 2410.06940);
  alignment_weight: float = setting(0.0, not_negative)
  alignment_network: str = setting("")
  alignment_stage: int = setting(1, not_negative)
  # G also minimises the cross-entropy of a pretrained classifier, FILE.npz of the same (StyleGAN-XL, arXiv 2202.00273).
  guidance_weight: float = setting(0.0, not_negative)
  guidance_classifier: str = setting("")


def smoke(settings: Settings) -> dict[str, Any]:
  """Returns the changes for `:smoke`: tiny networks with the same number of stages, a minute on a CPU."""
  stages = len(settings.widths)
  changes = {
    "widths": (16,) * stages,
    "cardinalities": tuple(min(2, groups) for groups in settings.cardinalities),
    "blocks": (1,) * stages,
    "burn_in_images": 64,
  }
  return changes if stages <= 4 else changes | {"augment_p": (0.0, 0.0)}  # most of a minute at 64x64


@dataclass(frozen=True)
class Guidance:
  """How a classifier guides G: `weight` times the mean cross-entropy of its 'logits' for samples, not augmented."""

  network: PretrainedNetwork
  weight: float


@dataclass(frozen=True)
class R3GAN(GAN):
  """The algorithm (`algorithms.base.Algorithm`).

  Attributes:
    generator: (z [N, noise_dim], labels) -> images [N, H, W, C].
    discriminator: (images, labels) -> logits [N].
    loss: the adversarial loss; the paper's is relativistic.
    penalties: which of "r1" (on reals) and "r2" (on fakes) are in D's loss; both are logged.
    augment: applied to all inputs of D, with probability `augment_p`; None: no augmentation.
    penalised_gradient: computes D's gradient, `losses.penalties.directional` or the slower `grad_of_grad`.
    frozen: see `algorithms.capabilities.HasFrozenLayers`; gradients flow through these layers, to G and for R1 and R2.
    ema_stds: of G's power-function averages.
    synced_augment: whether the real and the fake of a pair get the same draws of `augment`.
    alignment: None: without.
    guidance: None: without.
  """

  generator: nn.Module
  discriminator: nn.Module
  loss: AdversarialLoss = RELATIVISTIC
  penalties: tuple[str, ...] = ("r1", "r2")
  augment: Augment | None = None
  penalised_gradient: PenalisedGradient = directional
  frozen: frozenset[tuple[str, str]] = frozenset()
  ema_stds: tuple[float, ...] = ()
  synced_augment: bool = False
  alignment: Alignment | None = None
  guidance: Guidance | None = None

  def __post_init__(self) -> None:
    check_samples_apart(self.discriminator)
    if self.penalised_gradient is directional and not getattr(self.discriminator, "piecewise_linear", False):
      raise ValueError(
        f"losses.penalties.directional needs a discriminator that declares itself piecewise_linear, which "
        f"{type(self.discriminator).__name__} does not: use grad_of_grad"
      )
    if self.guidance and not self.num_classes:
      raise UserError("config.gan.guidance_weight needs classes: set config.data.num_classes, or the weight to 0")
    if self.alignment:
      self.alignment.check(self.discriminator, *self._example())

  @property
  def phases(self) -> Sequence[Phase]:
    discriminator, generator = PHASES
    return (
      Phase(discriminator, ("discriminator",), self._discriminator_gradients, counts_images=True),
      Phase(generator, ("generator",), self._generator_gradients),
    )

  @property
  def optimizers(self) -> Mapping[str, optax.GradientTransformationExtraArgs]:
    return {"generator": adam_without_momentum(), "discriminator": adam_without_momentum()}

  @property
  def averages(self) -> Mapping[str, Average | PowerFunctionAverage]:
    average = {"generator": Average("generator", "ema_half_life")}
    return average | {f"generator_{std}": PowerFunctionAverage("generator", std) for std in self.ema_stds}

  @property
  def image_dtype(self) -> jnp.dtype:
    return cast(HasImageDtype, self.generator).image_dtype

  def in_float32(self) -> "R3GAN":
    return replace(self, generator=self.generator.clone(bfloat16_stages=0))

  @property
  def image_features(self) -> nn.Module:
    return self.discriminator

  @property
  def pretrained(self) -> Mapping[str, PretrainedNetwork]:
    users = {ALIGNMENT: self.alignment, GUIDANCE: self.guidance}
    return {name: user.network for name, user in users.items() if user}

  @property
  def leading_rows(self) -> Mapping[str, Mapping[str, int]]:
    # G's first linear map: the rows of z, then those of the class embedding, if there is one.
    return {"generator": {"basis/linear/kernel": self.noise_dim}}

  def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    generator_key, discriminator_key = jax.random.split(key)
    z, (images, labels) = jnp.zeros((1, self.noise_dim)), self._example()
    params = {"generator": self.generator.init(generator_key, z, labels)["params"]}
    beside = self._beside(params, labels, jax.random.split(key, 1))
    params["discriminator"] = self.discriminator.init(discriminator_key, images, beside)["params"]
    if self.alignment:
      head_key, before = jax.random.fold_in(discriminator_key, 1), params["discriminator"]
      head = self.alignment.init(head_key, self.discriminator, before, images, labels)
      params["discriminator"] = before | {ALIGNMENT: head}
    return params, {}

  def noise(self, keys: jax.Array) -> jax.Array:
    return normal_noise(keys, self.noise_dim)

  def generate(
    self, params: Params, carry: Carry, noise: jax.Array, labels: jax.Array | None, truncation: float = 1.0
  ) -> jax.Array:
    """Draws images; truncation, which is not in the paper, multiplies the noise.

    The features at 4x4 are linear in the noise, so they move towards their mean (of the class), as StyleGAN's w does.
    """
    del carry
    return self._generate(params["generator"], truncation * noise, labels)

  def _discriminator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    z_keys, real_keys, fake_keys = self._split_keys(keys)
    labels = self._condition(batch, keys)
    real = self._real(batch)
    fake = self._generate(params["generator"], self.noise(z_keys), labels)
    # D does not couple samples, so reals and fakes pass it as one batch.
    images = jnp.concatenate([real, fake])
    augment_keys = jnp.concatenate([real_keys, fake_keys])
    beside = self._beside(params, labels, keys)
    both_beside = None if beside is None else jnp.concatenate([beside, beside])

    def critic(discriminator: Any, images: jax.Array, bias_scale: jax.Array) -> jax.Array:
      return self._logits(discriminator, images, both_beside, bias_scale)

    def objective(logits: jax.Array, squared_norms: jax.Array) -> tuple[jax.Array, Metrics]:
      real_logits, fake_logits = jnp.split(logits, 2)
      r1, r2 = jnp.split(squared_norms, 2)
      penalty = sum({"r1": r1, "r2": r2}[name] for name in self.penalties)
      adversarial = self.loss.discriminator(real_logits, fake_logits)
      return jnp.mean(adversarial + hyperparameters["gamma"] / 2 * penalty), {
        "adversarial_loss": jnp.mean(adversarial),
        "r1": jnp.mean(r1),
        "r2": jnp.mean(r2),
        "real_logits": jnp.mean(real_logits),
        "fake_logits": jnp.mean(fake_logits),
        "relativistic_sign": jnp.mean(jnp.sign(real_logits - fake_logits)),
      }

    def augmented(images: jax.Array) -> jax.Array:
      return self._augment(images, augment_keys, hyperparameters)

    gradients, metrics = self.penalised_gradient(critic, params["discriminator"], images, augmented, objective)
    if self.alignment:
      augmented_real = self._augment(real, real_keys, hyperparameters)
      seen = batch["image"], augmented_real, labels
      more, similarity = self.alignment.gradients(self.discriminator, params, *seen)
      gradients = jax.tree.map(jnp.add, gradients, more)
      metrics |= {"loss": metrics["loss"] - self.alignment.weight * similarity, "alignment": similarity}
    return {"discriminator": gradients}, carry, metrics

  def _generator_gradients(
    self, params: Params, carry: Carry, batch: Batch, keys: jax.Array, hyperparameters: Hyperparameters
  ) -> tuple[Params, Carry, Metrics]:
    z_keys, real_keys, fake_keys = self._split_keys(keys)
    labels = self._condition(batch, keys)
    z = self.noise(z_keys)
    real = self._augment(self._real(batch), real_keys, hyperparameters)
    beside = self._beside(params, labels, keys)
    real_logits = self._logits(params["discriminator"], real, beside)

    def loss(generator: Any) -> tuple[jax.Array, Metrics]:
      images = self._generate(generator, z, labels)
      fake_logits = self._logits(params["discriminator"], self._augment(images, fake_keys, hyperparameters), beside)
      total = jnp.mean(self.loss.generator(real_logits, fake_logits))
      metrics = {"relativistic_sign": jnp.mean(jnp.sign(fake_logits - real_logits))}
      if self.guidance and labels is not None:
        logits = self.guidance.network.apply(params[GUIDANCE], images)["logits"]
        metrics |= {"cross_entropy": jnp.mean(cross_entropy(logits, labels)), "adversarial_loss": total}
        total += self.guidance.weight * metrics["cross_entropy"]
      return total, {"loss": total} | metrics

    gradients, metrics = jax.grad(loss, has_aux=True)(params["generator"])
    return {"generator": gradients}, carry, metrics

  def _real(self, batch: Batch) -> jax.Array:
    return to_float(batch["image"])

  def _condition(self, batch: Batch, keys: jax.Array) -> jax.Array | None:
    """Returns what G sees besides z: the labels, None if unconditional."""
    del keys
    return batch.get("label")

  def _beside(self, params: Params, labels: jax.Array | None, keys: jax.Array) -> jax.Array | None:
    """Returns what D sees besides an image, the same for the real and the fake of a pair: the labels."""
    del params, keys
    return labels

  def _split_keys(self, keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the keys of z, and of the augmentations of reals and fakes."""
    z_keys, real_keys, fake_keys = split_keys(keys, 3)
    return z_keys, real_keys, real_keys if self.synced_augment else fake_keys

  def _example(self) -> tuple[jax.Array, jax.Array | None]:
    """Returns one blank image and its label."""
    return jnp.zeros((1, *self.image_shape)), jnp.zeros((1,), jnp.int32) if self.num_classes else None

  def _generate(self, generator: Any, z: jax.Array, labels: jax.Array | None) -> jax.Array:
    return cast(jax.Array, self.generator.apply({"params": generator}, z, labels))

  def _logits(
    self, discriminator: Any, images: jax.Array, labels: jax.Array | None, bias_scale: jax.Array | None = None
  ) -> jax.Array:
    return cast(jax.Array, self.discriminator.apply({"params": discriminator}, images, labels, bias_scale))

  def _augment(self, images: jax.Array, keys: jax.Array, hyperparameters: Hyperparameters) -> jax.Array:
    return images if self.augment is None else self.augment(images, keys, hyperparameters["augment_p"])


def build(settings: Settings, images: Images, platform: str) -> R3GAN:
  """Builds R3GAN, or an earlier configuration of its roadmap.

  Args:
    settings: each in its range.
    images: the data.
    platform: "cpu", "gpu" or "tpu"; decides "auto" settings.

  Raises:
    UserError: settings do not fit each other or the images.
  """
  generator, discriminator = _build_networks(settings, images, platform)
  algorithm = R3GAN(
    generator=generator,
    discriminator=discriminator,
    noise_dim=settings.noise_dim,
    images=images,
    loss=LOSSES[settings.loss],
    penalties=settings.penalties,
    augment=_build_augment(settings, images),
    penalised_gradient=PENALISED_GRADIENTS[settings.penalised_gradient],
    schedules=_schedules(settings),
    ema_stds=_ema_stds(settings),
    synced_augment=settings.synced_augment,
    alignment=_build_alignment(settings, images),
    guidance=_build_guidance(settings, images),
  )
  return replace(algorithm, frozen=_frozen_layers(settings, algorithm))


def _schedules(settings: Settings) -> dict[str, Schedule]:
  schedules = cosines(settings, ("learning_rate", "beta2", "gamma", "ema_half_life", "augment_p"))
  if settings.learning_rate_schedule == "cosine":
    return schedules
  peak, end = settings.learning_rate
  if peak != end:
    raise UserError(
      f"config.gan.learning_rate = {settings.learning_rate}: with config.gan.learning_rate_schedule = 'inverse_sqrt' "
      "give one number, the value that it rises to"
    )
  ramp, decay = settings.learning_rate_ramp_images, settings.learning_rate_decay_images
  return schedules | {"learning_rate": inverse_sqrt(peak, ramp, decay)}


def _ema_stds(settings: Settings) -> tuple[float, ...]:
  if len({*settings.ema_stds}) < len(settings.ema_stds):
    raise UserError(f"config.gan.ema_stds = {settings.ema_stds} names one twice: give each once")
  return settings.ema_stds


def _frozen_layers(settings: Settings, algorithm: R3GAN) -> frozenset[tuple[str, str]]:
  """Returns the layers of frozen stages. D's last layers and the class embeddings belong to no stage."""
  stages = len(settings.widths)
  for name in ("freeze_discriminator", "freeze_generator"):
    if (count := getattr(settings, name)) > stages:
      raise UserError(f"config.gan.{name} = {count}: the networks have {stages} stages: choose from 0 to {stages}")
  frozen = {
    "discriminator": range(stages - settings.freeze_discriminator, stages),
    "generator": range(settings.freeze_generator),
  }
  if not any(frozen.values()):
    return frozenset()
  first = {("discriminator", "from_image"): stages - 1, ("generator", "basis"): 0}

  def stage_of(network: str, layer: str) -> int | None:
    numbered = match(r"(?:stage|up|down|to_image)_(\d+)", layer)
    return int(numbered[1]) if numbered else first.get((network, layer))

  params, _ = jax.eval_shape(algorithm.init, jax.random.key(0))
  return frozenset(
    (network, layer) for network in frozen for layer in params[network] if stage_of(network, layer) in frozen[network]
  )


def _build_networks(settings: Settings, images: Images, platform: str) -> tuple[nn.Module, nn.Module]:
  """Returns (G, D)."""
  base = first_stage(settings, ("widths", "cardinalities", "blocks"), images)
  for width, cardinality in zip(settings.widths, settings.cardinalities, strict=True):
    if width * settings.expansion % cardinality:
      raise UserError(
        f"config.gan.cardinalities: {cardinality} groups do not divide width {width} x expansion {settings.expansion:g}"
      )
    algorithm = GROUPED_CONV_ALGORITHMS.get(settings.grouped_conv)
    if algorithm and cardinality % algorithm.merge:
      raise UserError(
        f"config.gan.grouped_conv = {settings.grouped_conv!r} does not divide the {cardinality} groups of "
        "config.gan.cardinalities: choose 'auto', or other groups"
      )
  shared: dict[str, Any] = {
    "widths": settings.widths,
    "num_classes": images.num_classes,
    "bfloat16_stages": bfloat16_stages(settings, platform),
  }
  of_generator: dict[str, Any] = {
    "noise_dim": settings.noise_dim,
    "embed_dim": settings.noise_dim,
    "image_channels": images.channels,
    "base": base,
  }
  of_discriminator: dict[str, Any] = {"embed_dim": settings.widths[0]}
  if settings.network == "stylegan2_skeleton":
    if {*settings.cardinalities, *settings.blocks, settings.expansion} != {1}:
      raise UserError(
        f"config.gan.network = {settings.network!r} has one block per stage, without groups or expansion: set all of "
        "config.gan.cardinalities, blocks and expansion to 1"
      )
    return SkeletonGenerator(**shared, **of_generator), SkeletonDiscriminator(**shared, **of_discriminator)
  fused = (settings.grouped_conv, platform) == ("auto", "tpu")
  shared |= {
    "cardinalities": settings.cardinalities,
    "blocks": settings.blocks,
    "expansion": settings.expansion,
    "grouped_conv": "fused" if fused else settings.grouped_conv,
  }
  generator = SkipGenerator if settings.network == "r3gan_output_skips" else Generator
  return generator(**shared, **of_generator), Discriminator(**shared, **of_discriminator)


def _build_augment(settings: Settings, images: Images) -> Augment | None:
  if settings.augment_p == (0.0, 0.0):
    return None
  if unknown := settings.augment.keys() - TRANSFORMS.keys():
    raise UserError(f"config.gan.augment: unknown {sorted(unknown)}: choose from {list(TRANSFORMS)}")
  colours = [name for name in colour.NAMES if settings.augment.get(name)]
  if images.latents and colours:
    raise UserError(f"config.gan.augment.{colours[0]}: an autoencoder's latents have no colours: set it to 0")
  return partial(augment, multipliers=settings.augment)


def _build_alignment(settings: Settings, images: Images) -> Alignment | None:
  if not settings.alignment_weight:
    return None
  stages, stage = len(settings.widths), settings.alignment_stage
  if stage >= stages:
    raise UserError(f"config.gan.alignment_stage = {stage}: the networks have {stages} stages: choose below {stages}")
  setting = f"config.gan.alignment_network = {settings.alignment_network!r}"
  network = pretrained_features(setting, settings.alignment_network, images.shape)
  return Alignment(network, f"stage_{stage}_block_{settings.blocks[stage] - 1}", settings.alignment_weight)


def _build_guidance(settings: Settings, images: Images) -> Guidance | None:
  if not settings.guidance_weight:
    return None
  setting = f"config.gan.guidance_classifier = {settings.guidance_classifier!r}"
  if not settings.guidance_classifier:
    raise UserError(f"{setting}: config.gan.guidance_weight needs one: name a file of cli.train_classifier --config")
  network = residual_classifier(setting, settings.guidance_classifier, images.shape, images.num_classes)
  return Guidance(network, settings.guidance_weight)
