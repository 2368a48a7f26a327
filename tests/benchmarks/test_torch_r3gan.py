"""The PyTorch code of the benchmarks computes what the official implementation computes."""

import numpy as np
import pytest
from helpers import golden_cases

torch = pytest.importorskip("torch")

from benchmarks import torch_r3gan


@pytest.fixture(params=["uncond_16px", "cond_8px"])
def case(request):
  return golden_cases.load(request.param)


@pytest.fixture
def trainer(case):
  shape = {key: case.meta["generator"][key] for key in ("widths", "cardinalities", "blocks", "num_classes")}
  dims = {key: case.meta["generator"][key] for key in ("noise_dim", "embed_dim")}
  generator, average = (torch_r3gan.Generator(**shape, **dims) for _ in range(2))
  discriminator = torch_r3gan.Discriminator(**shape, embed_dim=case.meta["discriminator"]["embed_dim"])
  torch_r3gan.load(generator, case.params("G", "generator"))
  torch_r3gan.load(discriminator, case.params("D", "discriminator"))
  return torch_r3gan.Trainer(generator, discriminator, average)


def images(array):
  """[..., H, W, C] -> [..., C, H, W]."""
  return torch.tensor(np.moveaxis(array, -1, -3))


def one_hot(case, labels):
  return torch.eye(case.meta["generator"]["num_classes"])[torch.tensor(labels)] if case.labels is not None else None


def assert_close(actual, expected, relative):
  actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
  assert (actual - expected).norm() <= relative * expected.norm()


def assert_parameters_close(actual, network, tree, relative):
  for name, expected in torch_r3gan.in_torch_layout(network, tree):
    assert_close(actual[name], expected, relative)


def gradients(network):
  return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_forward_passes(case, trainer):
  labels = one_hot(case, case.labels)
  with torch.no_grad():
    fake = trainer.generator(torch.tensor(case.arrays["z"]), labels)
    assert_close(fake, images(case.arrays["fake"]), 1e-5)
    for name in ("real", "fake"):
      assert_close(trainer.discriminator(images(case.arrays[name]), labels), case.arrays[f"{name}_logits"], 1e-5)


def test_penalties_and_gradients(case, trainer):
  z, real = torch.tensor(case.arrays["z"]), images(case.arrays["real"])
  labels = one_hot(case, case.labels)
  outputs = trainer.discriminator_gradients(z, real, labels, float(case.arrays["gamma"]))
  for actual, name in zip(outputs, ("d_relativistic_logits", "r1", "r2"), strict=True):
    assert_close(actual, case.arrays[name], 2e-5)
  discriminator, generator = trainer.discriminator, trainer.generator
  assert_parameters_close(gradients(discriminator), discriminator, case.params("dgrad", "discriminator"), 2e-5)
  assert_close(trainer.generator_gradients(z, real, labels), case.arrays["g_relativistic_logits"], 2e-5)
  assert_parameters_close(gradients(generator), generator, case.params("ggrad", "generator"), 2e-5)


def test_three_iterations(case, trainer):
  arrays = case.arrays
  for i in range(3):
    hyperparameters = torch_r3gan.Hyperparameters(
      *(float(arrays[f"steps/{name}"][i]) for name in ("lr", "beta2", "gamma", "ema_beta"))
    )
    pairs = torch.tensor(arrays["steps/z"][i]), images(arrays["steps/real"][i])
    labels = one_hot(case, arrays["steps/labels"][i]) if case.labels is not None else (None, None)
    trainer.iteration(*map(tuple, pairs), tuple(labels), hyperparameters)
  for network, prefix, kind in (
    (trainer.generator, "G", "generator"),
    (trainer.discriminator, "D", "discriminator"),
    (trainer.average, "G_ema", "generator"),
  ):
    assert_parameters_close(network.state_dict(), network, case.params(f"steps/{prefix}", kind), 2e-5)
