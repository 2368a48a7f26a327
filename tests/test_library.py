"""The package from Python: a trained GAN draws what the command draws, and the examples of docs/library.md run."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import official_pickles

import r3gan_jax
from configs import cifar10
from r3gan_jax import factory
from r3gan_jax.conversion import write_workdir
from r3gan_jax.errors import UserError
from r3gan_jax.interop.official import read_snapshot
from r3gan_jax.library import TrainedGan
from r3gan_jax.runs import TrainedRun
from r3gan_jax.sampling import Sampler
from r3gan_jax.training.mesh import make_mesh

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A directory with two runs: of 5 classes at 8x8, and of none at 16x16."""
  directory = tmp_path_factory.mktemp("library")
  for case, name in (("cond_8px", "five_classes"), ("uncond_16px", "no_classes")):
    write_workdir(read_snapshot(official_pickles.path(case)), directory / "runs" / name)
  return directory


@pytest.fixture(scope="module")
def gan(directory):
  return r3gan_jax.load(directory / "runs" / "five_classes")


@pytest.mark.parametrize(
  "flags, arguments",
  [
    (("--seeds=0-7",), {"seeds": range(8)}),
    (("--seeds=9,3", "--class=3", "--truncation=0.5"), {"seeds": np.array([9, 3]), "label": 3, "truncation": 0.5}),
  ],
)
def test_images_are_those_of_the_command(command, directory, gan, tmp_path, flags, arguments):
  workdir = directory / "runs" / "five_classes"
  command("sample", f"--workdir={workdir}", *flags, f"--out={tmp_path}/drawn.npz")
  with np.load(tmp_path / "drawn.npz") as drawn:
    np.testing.assert_array_equal(gan.sample(**arguments), drawn["images"])


def test_transparent_images_have_straight_alpha():
  """As in files: premultiplied again, they are what the networks drew."""
  config = cifar10.get_config("smoke")
  config.data.update({"resolution": 4, "channels": 4, "num_classes": 0})
  config.gan.update({"widths": (8,), "cardinalities": (2,), "blocks": (1,)})
  algorithm = factory.build_algorithm(config)
  params, carry = jax.jit(algorithm.init)(jax.random.key(0))
  gan = TrainedGan(TrainedRun(config, algorithm, params, carry, 0, ""))
  drawn = Sampler(algorithm, make_mesh(jax.local_devices()))(params, carry, np.arange(16))
  images = gan.sample(range(16))
  seen = (drawn[..., :3] <= drawn[..., 3:]).all(axis=-1)
  assert 0 < seen.sum() < seen.size
  again = np.rint(images[..., :3] * (images[..., 3:] / 255))
  np.testing.assert_array_equal(again[seen], drawn[seen][:, :3])


def test_labels(gan):
  """One for all, one for each; without them, those that the seeds draw. Fewer images at a time are the same."""
  both = gan.sample([1, 2], label=[0, 4])
  np.testing.assert_array_equal(gan.sample([1], label=0)[0], both[0])
  np.testing.assert_array_equal(gan.sample([2], label=np.int32(4))[0], both[1])
  assert (gan.sample([1], label=4)[0] != both[0]).any()
  assert (gan.num_classes, gan.image_shape) == (5, (8, 8, 3))
  assert gan.sample([]).shape == (0, 8, 8, 3)
  fewer = gan.sample([1, 2], label=[0, 4], batch_size=1)
  assert np.abs(fewer.astype(int) - both.astype(int)).max() <= 1


def test_images_become_uint8_as_the_run_says(directory):
  """Of a generator in bfloat16, the official code's are brighter by rounding: ops/images.py."""
  drawn = []
  for quantisation in ("float32", "official"):
    gan = r3gan_jax.load(directory / "runs" / "five_classes")
    gan.algorithm = replace(gan.algorithm, generator=gan.algorithm.generator.clone(bfloat16_stages=2))
    gan.config.run.quantisation = quantisation
    drawn.append(gan.sample(range(8), batch_size=1).astype(int))
  assert 0.1 < (drawn[1] - drawn[0]).mean() <= 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"seeds": 3}, "seeds: give integers"),
    ({"seeds": [0.5]}, "seeds: give integers"),
    ({"seeds": [[0, 1]]}, "seeds: give integers"),
    ({"seeds": [-1, 3]}, "seeds: -1 to 3 are given: choose from 0 to 4294967295"),
    ({"seeds": [2**32]}, "choose from 0 to 4294967295"),
    ({"seeds": [0], "label": 5}, "label: 5 to 5 are given: choose from 0 to 4"),
    ({"seeds": [0], "label": -1}, "label: "),
    ({"seeds": [0], "label": "cat"}, "label: give integers"),
    ({"seeds": [0, 1], "label": [1, 2, 3]}, "label: 3 classes for 2 seeds"),
    ({"seeds": [0], "truncation": 1.5}, "truncation = 1.5"),
    ({"seeds": [0], "batch_size": 0}, "batch_size = 0"),
  ],
)
def test_bad_arguments(gan, arguments, message):
  with pytest.raises(UserError, match=re.escape(message)):
    gan.sample(**arguments)


def test_a_gan_without_classes(directory):
  """And its checkpoint by number; others are not there."""
  workdir = directory / "runs" / "no_classes"
  gan = r3gan_jax.load(workdir)
  assert r3gan_jax.load(workdir, gan.images_seen).images_seen == gan.images_seen
  assert gan.num_classes == 0
  with pytest.raises(UserError, match="label: this GAN has no classes"):
    gan.sample([0], label=0)
  for checkpoint in (gan.images_seen + 1, "best", "newest"):
    with pytest.raises(UserError):
      r3gan_jax.load(workdir, checkpoint)
  with pytest.raises(UserError, match="nowhere"):
    r3gan_jax.load(directory / "nowhere")


def test_the_package_imports_nothing_before_it_is_used():
  """Or a command would import JAX twice: memory.py."""
  program = "import sys, r3gan_jax.memory; sys.exit(sum(name in sys.modules for name in ('jax', 'numpy', 'flax')))"
  assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
  assert r3gan_jax.load.__doc__
  with pytest.raises(AttributeError):
    r3gan_jax.lod  # noqa: B018


def test_the_examples_of_the_page(directory, monkeypatch):
  monkeypatch.chdir(directory)
  page = (ROOT / "docs" / "library.md").read_text()
  examples = list(re.finditer(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
  assert len(examples) == page.count("```python")
  names = {}
  for example in examples:
    line = page[: example.start(1)].count("\n")  # so that an error names the line of the page
    with jax.numpy_dtype_promotion("standard"):  # as a reader has it, and optax.adam needs it
      exec(compile("\n" * line + example[1], "docs/library.md", "exec"), names)
  assert names["scores"]["fid"] > 0
