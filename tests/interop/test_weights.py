"""Published weights: where they are found, when they are downloaded, and when they are refused."""

import hashlib

import numpy as np
import pytest
from helpers.golden_cases import GOLDEN

from r3gan_jax.errors import UserError
from r3gan_jax.interop.weights import INCEPTION, VGG16, PublishedWeights
from r3gan_jax.metrics import inception

CONTENT = (GOLDEN / "state_dict.pth").read_bytes()


def read_whole(read, path, shapes):
  assert path == ("layer",) and shapes["bias"] == (2,)
  return {"kernel": read("weight", shapes["kernel"]), "bias": read("bias", (2,))}


ABSTRACT = {"layer": {"kernel": np.zeros((3, 2, 1, 2)), "bias": np.zeros(2)}}


@pytest.fixture
def published(tmp_path, monkeypatch):
  """A published file at a file:// URL, with an empty cache: (weights, file, its place in the cache)."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  file = tmp_path / "made_up.pth"
  file.write_bytes(CONTENT)
  weights = PublishedWeights(file.as_uri(), hashlib.sha256(CONTENT).hexdigest()[:8], read_whole)
  return weights, file, tmp_path / "cache" / "r3gan_jax" / file.name


def test_downloads_only_on_request_and_only_once(published):
  weights, file, cached = published
  with pytest.raises(UserError) as error:
    weights.params(ABSTRACT)
  assert str(error.value) == f"{cached} does not exist: put {file.as_uri()} there, or download it with --download"
  assert not cached.parent.exists()

  params = weights.params(ABSTRACT, download=True)
  np.testing.assert_array_equal(params["layer"]["kernel"], np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2) / 8)
  assert [path.name for path in cached.parent.iterdir()] == [file.name]
  file.unlink()
  assert weights.params(ABSTRACT).keys() == {"layer"}


def test_a_damaged_download_leaves_nothing(published):
  weights, file, cached = published
  file.write_bytes(CONTENT[:-1])
  with pytest.raises(UserError, match=r"is damaged: its SHA-256 begins with [0-9a-f]{8}, not [0-9a-f]{8}"):
    weights.params(ABSTRACT, download=True)
  assert not list(cached.parent.iterdir())


def test_no_network(published):
  weights, file, _ = published
  file.unlink()
  with pytest.raises(UserError, match=r"could not be downloaded .*: .* put it at"):
    weights.params(ABSTRACT, download=True)


def test_a_damaged_file_in_the_cache(published):
  weights, _, cached = published
  cached.parent.mkdir(parents=True)
  cached.write_bytes(CONTENT.replace(b"weight", b"height"))
  with pytest.raises(UserError, match=rf"{cached} is damaged"):
    weights.params(ABSTRACT)
  with pytest.raises(UserError, match=r"elsewhere\.pth does not exist"):
    weights.params(ABSTRACT, cached.with_name("elsewhere.pth"))


WEIGHT, BIAS = np.zeros((1008, 2048)), np.zeros(1008)


@pytest.mark.parametrize(
  "content, message",
  [
    ({"fc.weight": WEIGHT}, "has no tensor fc.bias"),
    ({"fc.weight": WEIGHT, "fc.bias": np.zeros(1000)}, r"fc.bias is float64 \(1000,\)"),  # as torchvision's Inception
    ({"fc.weight": WEIGHT, "fc.bias": BIAS.astype(str)}, "fc.bias is <U32"),
    (b"<html>not found</html>", "cannot be read as weights"),
    (b"", "cannot be read as weights"),
  ],
)
def test_another_file(tmp_path, content, message):
  file = tmp_path / ("other.pth" if isinstance(content, bytes) else "other.npz")
  file.write_bytes(content) if isinstance(content, bytes) else np.savez(file, **content)
  abstract = {"fc": inception.abstract_params()["fc"]}
  with pytest.raises(UserError, match=rf"{file}.*{message}.*: give https://.*/pt_inception-2015-12-05-6726825d\.pth"):
    INCEPTION.params(abstract, file)


def test_own_weights(tmp_path):
  """The published names and shapes, with any values, as an .npz."""
  random = np.random.default_rng(0)
  weight, bias = random.normal(size=(1008, 2048)), random.normal(size=1008)
  np.savez(tmp_path / "mine.npz", **{"fc.weight": weight, "fc.bias": bias, "not.needed": bias})
  params = INCEPTION.params({"fc": inception.abstract_params()["fc"]}, tmp_path / "mine.npz")
  np.testing.assert_array_equal(params["fc"]["kernel"], weight.astype(np.float32).T)
  np.testing.assert_array_equal(params["fc"]["bias"], bias.astype(np.float32))


def test_published_names():
  assert INCEPTION.file_name == "pt_inception-2015-12-05-6726825d.pth"
  assert VGG16.file_name == "vgg16-397923af.pth"
