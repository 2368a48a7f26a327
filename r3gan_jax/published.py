"""Runs in the form of the Hugging Face Hub: a folder with config.json, model.safetensors, samples.png and README.md.

model.safetensors has the averaged networks that draw samples, and the carry, as "generator.Dense_0.kernel" and so on.
A whole state has the other networks, too, and what training needs besides: "unaveraged.generator. ..." are the weights
before averaging, "optimizer.generator. ..." is the state of an optimiser. Kernels are [kh, kw, in, out], as in Flax.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.interpreters import partial_eval
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from r3gan_jax import factory
from r3gan_jax.algorithms.base import Algorithm
from r3gan_jax.errors import UserError
from r3gan_jax.interop import hub
from r3gan_jax.reporting.model_card import model_card
from r3gan_jax.runs import TrainedRun, drawing_images
from r3gan_jax.sampling import Sampler, image_grid, save_png
from r3gan_jax.storage import as_path, is_file, is_remote
from r3gan_jax.training.mesh import local_copy, make_mesh, on_local_devices
from r3gan_jax.training.state import TrainState
from r3gan_jax.training.workdir import CONFIG_FILE, read_config

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
SAMPLES_FILE = "samples.png"

_GRID = 8
"""The columns and rows of samples.png."""


def is_published(path: epath.PathLike) -> bool:
  """Returns whether `open_published` is for this path: hf://OWNER/NAME[@REVISION], or a local folder in its form."""
  if hub.is_address(path) or is_remote(path):
    return hub.is_address(path)
  return all(is_file(as_path(path) / name) for name in (CONFIG_FILE, WEIGHTS_FILE))


def open_published(path: epath.PathLike) -> TrainedRun:
  """Reads a published run; its params have the networks that draw samples, and others if they are published.

  Args:
    path: see `is_published`.

  Raises:
    UserError: the Hub does not give it, or a file is missing, damaged or of other networks.
  """
  folder = epath.Path(hub.fetch(path, (CONFIG_FILE, WEIGHTS_FILE))) if hub.is_address(path) else as_path(path)
  config = factory.opened(read_config(folder), folder / CONFIG_FILE)
  algorithm = factory.build_algorithm(config)
  params, carry = jax.eval_shape(algorithm.init, jax.random.key(0))
  file = folder / WEIGHTS_FILE
  try:
    with safe_open(file, framework="numpy") as tensors:
      names = {name.partition(".")[0] for name in tensors.keys()}  # noqa: SIM118  it cannot be iterated over
      wanted = networks_drawn_from(algorithm) | names
      params, carry = jax.tree.map_with_path(
        lambda keys, leaf: _tensor(tensors, _name(keys[1:]), leaf),
        ({name: params[name] for name in params if name in wanted}, carry),
      )
      images_seen = int(tensors.metadata()["images_seen"])
  except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file} cannot be read: {error}: publish the run again, or fetch it again") from None
  title = f"the run published at {images_seen:,} images in {path}"
  params, carry = on_local_devices((params, carry))
  return TrainedRun(config, algorithm, params, carry, images_seen, title)


def _tensor(tensors: Any, name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
  """Returns a tensor; raises a ValueError if it is not like `leaf`, a SafetensorError if there is none."""
  tensor = tensors.get_tensor(name)
  if (tensor.shape, tensor.dtype) != (leaf.shape, leaf.dtype):
    raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, not {leaf.dtype} {leaf.shape} as {CONFIG_FILE} says")
  return tensor


def write_published(
  trained: TrainedRun, workdir: epath.Path, out: Path, licence: str, address: str, state: TrainState | None = None
) -> None:
  """Writes a run as the folder `out`, whole or not at all.

  Args:
    trained: the checkpoint.
    workdir: its work directory.
    out: must not exist, or be empty.
    licence: of the weights, as an identifier of the Hub.
    address: by which the card loads it.
    state: the state of the checkpoint, to publish all of it.

  Raises:
    UserError: samples are not finite.
    OSError: the folder cannot be written.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as directory:
    folder = Path(directory) / out.name
    folder.mkdir()
    drawn_from = networks_drawn_from(trained.algorithm)
    params = {name: trained.params[name] for name in trained.params if name in drawn_from}
    tensors = _tensors({**params, **trained.carry})
    if state is not None:
      tensors |= _tensors({**trained.params, **_besides_averages(trained.algorithm, state)})
    metadata = {"format": "flax", "images_seen": str(trained.images_seen)}
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata))
    config = _without_paths(trained.config.to_dict())
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    caption = _save_samples(trained, folder / SAMPLES_FILE)
    card = model_card(
      workdir,
      trained.config.to_dict(),
      trained.images_seen,
      sum(leaf.size for leaf in jax.tree.leaves(params)),
      address,
      licence,
      SAMPLES_FILE,
      caption,
      can_continue=state is not None,
    )
    (folder / CARD_FILE).write_text(card)
    folder.rename(out)


def networks_drawn_from(algorithm: Algorithm) -> set[str]:
  """Returns the names of the networks that samples depend on."""

  def draw(params: Any, carry: Any, keys: jax.Array, labels: jax.Array | None) -> jax.Array:
    # Truncation needs all that samples without it do.
    return algorithm.generate(params, carry, algorithm.noise(keys), labels, truncation=0.5)

  params, carry = jax.eval_shape(algorithm.init, jax.random.key(0))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  labels = jax.ShapeDtypeStruct((1,), jnp.int32) if algorithm.num_classes else None
  jaxpr = jax.make_jaxpr(draw)(params, carry, keys, labels).jaxpr
  _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  leaves = jax.tree.leaves_with_path(params)
  return {path[0].key for (path, _), read in zip(leaves, used, strict=False) if read}


def _besides_averages(algorithm: Algorithm, state: TrainState) -> dict[str, Any]:
  """Returns the rest of a state: what is averaged, before that, and the optimisers."""
  names = {average.of for average in algorithm.averages.values()}
  unaveraged = {name: tree for name, tree in {**state.params, **state.carry}.items() if name in names}
  return local_copy({"unaveraged": unaveraged, "optimizer": state.optimizer})


def _tensors(tree: Any) -> dict[str, np.ndarray]:
  return {_name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the configuration without the publisher's own paths."""
  run = {**config["run"], "data_path": ""}
  if not hub.is_address(run.get("autoencoder", "")):
    run.pop("autoencoder", None)
  return {**config, "init_from": "", "run": run}


def _save_samples(trained: TrainedRun, path: Path) -> str:
  """Writes a grid of samples; returns what it shows."""
  seeds, num_classes = np.arange(_GRID * _GRID), trained.algorithm.num_classes
  labels = seeds // _GRID % num_classes if num_classes else None
  quantised_in = factory.quantised_in(trained.config, trained.algorithm)
  trained = drawing_images(trained)
  sampler = Sampler(trained.algorithm, make_mesh(), quantised_in=quantised_in, title=trained.title)
  images = sampler(trained.params, trained.carry, seeds, labels)
  save_png(path, image_grid(images, _GRID), trained.config.run.grid_scale)
  rows = "" if labels is None else f"; the rows are the classes {', '.join(map(str, labels[::_GRID]))}"
  return f"Seeds 0 to {seeds[-1]}, row by row, not selected{rows}."
