"""R3GAN in PyTorch, for benchmarks/train_step.py and benchmarks/sampling.py.

Written from the paper for this comparison, and checked like the JAX code against numbers recorded from the official
implementation (tests/benchmarks/test_torch_r3gan.py). Like the official training loop it passes reals and fakes to D
separately, computes R1 and R2 by `torch.autograd.grad(create_graph=True)`, and freezes D while it trains G. Parameters
have the names of the JAX ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn

LEAKY_SLOPE = 0.2


class Generator(nn.Module):
  """z [N, noise_dim] -> images [N, C, H, W]. For the arguments see r3gan_jax.networks.r3gan.Generator."""

  def __init__(
    self,
    widths: Sequence[int],
    cardinalities: Sequence[int],
    blocks: Sequence[int],
    noise_dim: int = 64,
    num_classes: int = 0,
    embed_dim: int = 64,
    image_channels: int = 3,
    expansion: int = 2,
  ):
    super().__init__()
    if num_classes:
      self.class_embedding = Linear(num_classes, embed_dim)
    layers: dict[str, nn.Module] = {"basis": GenerativeBasis(noise_dim + (embed_dim if num_classes else 0), widths[0])}
    for stage, (width, cardinality, count) in enumerate(zip(widths, cardinalities, blocks, strict=True)):
      if stage:
        layers[f"up_{stage}"] = Upsample(widths[stage - 1], width)
      for block in range(count):
        layers[f"stage_{stage}_block_{block}"] = ResidualBlock(width, cardinality, expansion)
    layers["to_image"] = Pointwise(widths[-1], image_channels)
    self.layers = _register(self, layers)

  def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """labels: one-hot [N, num_classes], None if unconditional."""
    x = z if labels is None else torch.cat([z, self.class_embedding(labels)], dim=1)
    for layer in self.layers:
      x = layer(x)
    return x


class Discriminator(nn.Module):
  """images [N, C, H, W] -> logits [N]. For the arguments see r3gan_jax.networks.r3gan.Discriminator."""

  def __init__(
    self,
    widths: Sequence[int],
    cardinalities: Sequence[int],
    blocks: Sequence[int],
    num_classes: int = 0,
    embed_dim: int = 768,
    image_channels: int = 3,
    expansion: int = 2,
  ):
    super().__init__()
    top = len(widths) - 1
    layers: dict[str, nn.Module] = {"from_image": Pointwise(image_channels, widths[top])}
    for stage in range(top, -1, -1):
      if stage != top:
        layers[f"down_{stage}"] = Downsample(widths[stage + 1], widths[stage])
      for block in range(blocks[stage]):
        layers[f"stage_{stage}_block_{block}"] = ResidualBlock(widths[stage], cardinalities[stage], expansion)
    layers["basis"] = DiscriminativeBasis(widths[0], embed_dim if num_classes else 1)
    self.layers = _register(self, layers)
    if num_classes:
      self.class_embedding = Linear(num_classes, embed_dim)

  def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """labels: one-hot [N, num_classes], None if unconditional."""
    x = images
    for layer in self.layers:
      x = layer(x)
    return x[:, 0] if labels is None else (x * self.class_embedding(labels)).sum(1)


def build_generator(config: ConfigDict) -> Generator:
  """Builds G of a recipe, with the sizes of the JAX one."""
  gan, data = config.gan, config.data
  shape = gan.widths, gan.cardinalities, gan.blocks
  return Generator(*shape, gan.noise_dim, data.num_classes, gan.noise_dim, data.channels)


def build_discriminator(config: ConfigDict) -> Discriminator:
  """Builds D of a recipe, with the sizes of the JAX one."""
  gan, data = config.gan, config.data
  shape = gan.widths, gan.cardinalities, gan.blocks
  return Discriminator(*shape, data.num_classes, gan.widths[0], data.channels)


def _register(network: nn.Module, layers: Mapping[str, nn.Module]) -> list[nn.Module]:
  """Adds layers to the network by name; returns them in order."""
  for name, layer in layers.items():
    network.add_module(name, layer)
  return list(layers.values())


class ResidualBlock(nn.Module):
  def __init__(self, width: int, cardinality: int, expansion: int):
    super().__init__()
    inner = width * expansion
    self.cardinality = cardinality
    self.conv1 = _parameter(inner, width, 1, 1)
    self.bias1 = nn.Parameter(torch.zeros(inner))
    self.conv2 = _parameter(inner, inner // cardinality, 3, 3)
    self.bias2 = nn.Parameter(torch.zeros(inner))
    self.conv3 = _parameter(width, inner, 1, 1)

  def forward(self, x: Tensor) -> Tensor:
    y = F.leaky_relu(F.conv2d(x, self.conv1, self.bias1), LEAKY_SLOPE)
    y = F.leaky_relu(F.conv2d(y, self.conv2, self.bias2, padding=1, groups=self.cardinality), LEAKY_SLOPE)
    return x + F.conv2d(y, self.conv3)


class Pointwise(nn.Module):
  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.kernel = _parameter(outputs, inputs, 1, 1)

  def forward(self, x: Tensor) -> Tensor:
    return F.conv2d(x, self.kernel)


class Linear(nn.Module):
  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.kernel = _parameter(outputs, inputs)

  def forward(self, x: Tensor) -> Tensor:
    return F.linear(x, self.kernel)


class Upsample(nn.Module):
  """A 1x1 convolution if the width changes, then zeros between pixels and [1, 3, 3, 1] / 4 per axis."""

  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.conv = Pointwise(inputs, outputs) if inputs != outputs else nn.Identity()
    self.filter = nn.Buffer(_resampling_filter(outputs) * 4, persistent=False)

  def forward(self, x: Tensor) -> Tensor:
    x = self.conv(x)
    return F.conv_transpose2d(x, self.filter, stride=2, padding=1, groups=len(self.filter))


class Downsample(nn.Module):
  """[1, 3, 3, 1] / 8 per axis and every second pixel, then a 1x1 convolution if the width changes."""

  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.filter = nn.Buffer(_resampling_filter(inputs), persistent=False)
    self.conv = Pointwise(inputs, outputs) if inputs != outputs else nn.Identity()

  def forward(self, x: Tensor) -> Tensor:
    x = F.conv2d(x, self.filter, stride=2, padding=1, groups=len(self.filter))
    return self.conv(x)


class GenerativeBasis(nn.Module):
  def __init__(self, inputs: int, width: int):
    super().__init__()
    self.constant = nn.Parameter(torch.randn(width, 4, 4))
    self.linear = Linear(inputs, width)

  def forward(self, x: Tensor) -> Tensor:
    return self.constant * self.linear(x)[:, :, None, None]


class DiscriminativeBasis(nn.Module):
  def __init__(self, width: int, outputs: int):
    super().__init__()
    self.constant = _parameter(width, 1, 4, 4)
    self.linear = Linear(width, outputs)

  def forward(self, x: Tensor) -> Tensor:
    return self.linear((x * self.constant[:, 0]).sum((2, 3)))


def _parameter(*shape: int) -> nn.Parameter:
  """Initialises with standard deviation 1 / sqrt(fan in); a benchmark does not need the paper's gains or zeros."""
  return nn.Parameter(torch.randn(shape) / np.sqrt(np.prod(shape[1:])))


def _resampling_filter(channels: int) -> Tensor:
  axis = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
  return torch.outer(axis, axis).expand(channels, 1, 4, 4).contiguous()


@dataclass(frozen=True)
class Hyperparameters:
  """The hyperparameters of an iteration; `ema_decay` is the decay of the moving average."""

  learning_rate: float
  beta2: float
  gamma: float
  ema_decay: float


class Trainer:
  """G, D, G's moving average and optimisers; `iteration` is a step of D, a step of G and an update of the average.

  `compiled`: by torch.compile, where gradients are taken once.
  """

  def __init__(self, generator: Generator, discriminator: Discriminator, average: Generator, compiled: bool = False):
    self.generator, self.discriminator, self.average = generator, discriminator, average
    self._generate: nn.Module | Any = torch.compile(generator) if compiled else generator
    self._judge: nn.Module | Any = torch.compile(discriminator) if compiled else discriminator
    average.load_state_dict(generator.state_dict())
    average.requires_grad_(False)
    self.optimizers: dict[nn.Module, torch.optim.Optimizer] = {
      network: torch.optim.Adam(network.parameters(), betas=(0.0, 0.9), eps=1e-8, fused=True)
      for network in (generator, discriminator)
    }

  def iteration(
    self, z: Sequence[Tensor], real: Sequence[Tensor], labels: Sequence[Tensor | None], hyperparameters: Hyperparameters
  ) -> None:
    """Runs an iteration; pairs are for the steps of D and G. Images [N, C, H, W] in [-1, 1], labels one-hot."""
    self.discriminator_gradients(z[0], real[0], labels[0], hyperparameters.gamma)
    self._update(self.discriminator, hyperparameters)
    self.generator_gradients(z[1], real[1], labels[1])
    self._update(self.generator, hyperparameters)
    with torch.no_grad():
      torch._foreach_lerp_(
        list(self.average.parameters()), list(self.generator.parameters()), weight=1 - hyperparameters.ema_decay
      )

  def discriminator_gradients(
    self, z: Tensor, real: Tensor, labels: Tensor | None, gamma: float
  ) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of D's parameters; returns relativistic logits, R1 and R2, each [N]."""
    self.discriminator.requires_grad_(True)
    with torch.no_grad():
      fake = self._generate(z, labels)
    real_logits, r1 = self._logits_and_penalty(real, labels)
    fake_logits, r2 = self._logits_and_penalty(fake, labels)
    difference = real_logits - fake_logits
    (F.softplus(-difference) + gamma / 2 * (r1 + r2)).mean().backward()
    return difference.detach(), r1.detach(), r2.detach()

  def _logits_and_penalty(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    images = images.detach().requires_grad_(True)
    logits = self.discriminator(images, labels)
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return logits, gradients.square().sum((1, 2, 3))

  def generator_gradients(self, z: Tensor, real: Tensor, labels: Tensor | None) -> Tensor:
    """Computes the gradients of G's parameters; returns the relativistic logits [N]."""
    self.discriminator.requires_grad_(False)
    fake_logits = self._judge(self._generate(z, labels), labels)
    difference = fake_logits - self._judge(real, labels)
    F.softplus(-difference).mean().backward()
    return difference.detach()

  def _update(self, network: nn.Module, hyperparameters: Hyperparameters) -> None:
    optimizer = self.optimizers[network]
    optimizer.param_groups[0].update(lr=hyperparameters.learning_rate, betas=(0.0, hyperparameters.beta2))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def load(network: nn.Module, tree: Mapping[str, Any]) -> None:
  """Copies JAX parameters, a tree of arrays, into `network`."""
  with torch.no_grad():
    for name, value in in_torch_layout(network, tree):
      network.get_parameter(name).copy_(value)


def in_torch_layout(network: nn.Module, tree: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
  """Yields (name, value) of the parameters of `network` from a JAX tree of parameters or gradients."""
  for name, parameter in network.named_parameters():
    leaf: Any = tree
    for part in name.split("."):
      leaf = leaf[part]
    value = torch.tensor(np.asarray(leaf))
    # [C]; [in, out] -> [out, in]; [H, W, C] -> [C, H, W]; HWIO -> OIHW
    value = value.permute({1: (0,), 2: (1, 0), 3: (2, 0, 1), 4: (3, 2, 0, 1)}[value.ndim])
    yield name, value.reshape(parameter.shape)
