"""LPIPS against numbers recorded from the authors' package, with made-up weights under the published names."""

import jax
import numpy as np
import pytest
from helpers import feature_networks

from r3gan_jax.interop.weights import LPIPS, VGG16
from r3gan_jax.metrics import lpips


def test_golden_distances():
  """From far apart to 1e-4 of that, where the distances are 1e-8 as large."""
  abstract = lpips.abstract_params()
  vgg16 = VGG16.convert(feature_networks.vgg16_state(), abstract.pop("vgg16"), "random")
  weights = LPIPS.convert(feature_networks.lpips_state(), abstract, "random")
  found = jax.jit(lpips.LPIPS().apply)({"params": {**weights, "vgg16": vgg16}}, *feature_networks.lpips_images())
  with np.load(feature_networks.GOLDEN) as golden:
    recorded = golden["lpips"]
  assert recorded[-1] < 1e-7 < recorded[0]
  np.testing.assert_allclose(found[:3], recorded[:3], rtol=1e-4)
  assert found[3] == pytest.approx(recorded[3], rel=1e-2)
