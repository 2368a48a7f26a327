"""Files of Stable Diffusion's autoencoder: of today and of 2022, of other sizes, and broken ones."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import sd_vae
from helpers.hub_server import TOKEN, Repository, hub_server
from safetensors.numpy import load_file, save, save_file

from r3gan_jax.errors import UserError
from r3gan_jax.interop.sd_vae import CONFIG_FILE, WEIGHTS_FILE, read_autoencoder, write_autoencoder
from r3gan_jax.networks.vae import Autoencoder

TO_Q = "encoder.mid_block.attentions.0.to_q.weight"


@pytest.fixture(scope="module")
def state():
  return sd_vae.state_dict("grey")


@pytest.fixture
def write(tmp_path):
  """Writes tensors and a configuration as a folder: (tensors, config) -> path."""

  def write(tensors, config='{"norm_num_groups": 8}'):
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text(config)
    return tmp_path

  return write


def assert_equal(params, expected):
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("name", sd_vae.NETWORKS)
def test_files_of_diffusers(name, tmp_path):
  """All that config.json says of the network, but for the groups, follows from the tensors; written, they are equal."""
  state, attributes = sd_vae.state_dict(name), sd_vae.NETWORKS[name]
  autoencoder, params = read_autoencoder(sd_vae.write(tmp_path, name))
  assert autoencoder == Autoencoder(**attributes)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  kernel, tensor = params["encoder"]["conv_in"]["kernel"], state["encoder.conv_in.weight"]
  np.testing.assert_array_equal(kernel[0, 2, 0], tensor[:, 0, 0, 2])

  write_autoencoder(tmp_path / "written", autoencoder, params)
  assert_equal(load_file(tmp_path / "written" / WEIGHTS_FILE), state)
  config = json.loads((tmp_path / "written" / CONFIG_FILE).read_text())
  assert config["_class_name"] == "AutoencoderKL" and config["block_out_channels"] == list(attributes["widths"])
  again, equal = read_autoencoder(tmp_path / "written" / WEIGHTS_FILE)
  assert again == autoencoder
  assert_equal(equal, params)


@pytest.mark.parametrize("convolutions", [False, True])
def test_earlier_names_of_attention(state, write, convolutions):
  """As linear maps, or as 1x1 convolutions."""
  _, params = read_autoencoder(write(state))
  earlier = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  renamed = {}
  for name, tensor in state.items():
    for new, old in earlier.items():
      if f".{new}." in name:
        name = name.replace(new, old)
        tensor = tensor[..., None, None] if convolutions and name.endswith("weight") else tensor
    renamed[name] = tensor
  assert len(renamed.keys() - state.keys()) == 16
  assert_equal(read_autoencoder(write(renamed))[1], params)


def test_the_batch_norm_of_flux2_is_not_read(state, write):
  """The names of diffusers' AutoencoderKLFlux2."""
  moments = {f"bn.running_{name}": np.ones(16, np.float32) for name in ("mean", "var")}
  more = moments | {"bn.num_batches_tracked": np.zeros((), np.int64)}
  assert_equal(read_autoencoder(write(state | more))[1], read_autoencoder(write(state))[1])


def test_float16(state, write):
  half = {name: tensor.astype(np.float16) for name, tensor in state.items()}
  _, params = read_autoencoder(write(half))
  assert_equal(params, read_autoencoder(write({name: tensor.astype(np.float32) for name, tensor in half.items()}))[1])


def test_the_file_alone_has_the_published_number_of_groups(tmp_path):
  autoencoder = Autoencoder(widths=(32, 64), blocks=1)
  shapes = jax.eval_shape(autoencoder.init, jax.random.key(0), jnp.zeros((1, 2, 2, 3)))["params"]
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  write_autoencoder(tmp_path, autoencoder, params)
  (tmp_path / CONFIG_FILE).unlink()
  assert read_autoencoder(tmp_path / WEIGHTS_FILE)[0] == autoencoder
  write_autoencoder(tmp_path, dataclasses.replace(autoencoder, groups=16), params)
  assert read_autoencoder(tmp_path / WEIGHTS_FILE)[0].groups == 16


@pytest.mark.parametrize(
  "change, message",
  [
    ({"decoder.conv_out.bias": None}, "it lacks tensors: decoder.conv_out.bias: give"),
    ({"encoder.down_blocks.0.resnets.0.conv1.weight": None}, "it has no convolution encoder.down_blocks.0"),
    (
      {f"quant.{n}": np.zeros(2, np.float32) for n in range(4)},
      "it has unknown tensors: quant.0, quant.1, quant.2 ",
    ),
    ({TO_Q: np.zeros((32, 16), np.float32)}, rf"its {TO_Q} is float32 \(32, 16\), which does not fit \(32, 32\)"),
    ({TO_Q: np.zeros((32, 32), np.int32)}, rf"its {TO_Q} is int32"),
    ({"post_quant_conv.weight": np.zeros(3, np.float32)}, "it has no convolution post_quant_conv.weight"),
  ],
)
def test_other_tensors(state, write, change, message):
  changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
  with pytest.raises(UserError, match=f"{WEIGHTS_FILE}: {message}"):
    read_autoencoder(write(changed))


def test_other_numbers_of_groups(state, write):
  with pytest.raises(UserError, match=r"32 groups of group norm \(norm_num_groups of config.json\) do not divide"):
    read_autoencoder(write(state, "{}"))
  for config in ("{", "[8]", '{"norm_num_groups": "8"}', '{"norm_num_groups": 0}'):
    with pytest.raises(UserError, match=r"config.json is damaged: it needs a number of groups, norm_num_groups"):
      read_autoencoder(write(state, config))


def test_files_that_are_none(state, tmp_path):
  with pytest.raises(UserError, match=f"{WEIGHTS_FILE} does not exist: give .* hf://stabilityai/sd-vae-ft-mse"):
    read_autoencoder(tmp_path)
  file = tmp_path / "other.safetensors"
  whole = save(state)
  for content in (b"", b"no tensors at all", whole[:-1], save({"a": np.zeros(2, ml_dtypes.bfloat16)})):
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"other.safetensors is not a safetensors file of float16 or float32"):
      read_autoencoder(file)


def test_from_the_hub(state, tmp_path):
  """In a process of its own: huggingface_hub reads its environment when it is imported."""
  with hub_server(tmp_path / "home") as (repositories, variables):
    repositories["someone/vae"] = repository = Repository(private=False)
    repository.commit({WEIGHTS_FILE: save(state), CONFIG_FILE: b'{"norm_num_groups": 8}', "other.bin": b"..."})
    program = (
      "from r3gan_jax.interop.sd_vae import read_autoencoder; print(read_autoencoder('hf://someone/vae')[0].groups)"
    )
    done = subprocess.run(
      [sys.executable, "-c", program],
      env=os.environ | variables | {"HF_TOKEN": TOKEN},
      capture_output=True,
      text=True,
      check=True,
    )
  assert done.stdout.split() == ["8"]
