"""Post-hoc EMA (Karras et al. 2024, arXiv 2312.02696, section 3.2): moving averages of a length chosen after training.

A run with config.gan.ema_stds keeps the `PowerFunctionAverage`s of every snapshot of its training. A combination of
them, whose coefficients follow from the profiles of their weights over time alone, is the average of another relative
standard deviation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from r3gan_jax.algorithms.base import Algorithm, Average, PowerFunctionAverage
from r3gan_jax.errors import UserError
from r3gan_jax.storage import absolute, failing_as, read_npz, write_npz
from r3gan_jax.training.ema import power_exponent
from r3gan_jax.training.mesh import local_copy
from r3gan_jax.training.state import TrainState

DIRECTORY = "posthoc"
"""The name in a work directory. It holds an .npz for each snapshot, named by images seen: NAME/LAYER/... -> float32."""


class Profile(NamedTuple):
  """A power-function average: at so many images seen, of this relative standard deviation."""

  images_seen: int
  std: float


def power_averages(algorithm: Algorithm) -> dict[str, PowerFunctionAverage]:
  """Returns those of the algorithm's averages from which others can be made, by name."""
  return {name: rule for name, rule in algorithm.averages.items() if isinstance(rule, PowerFunctionAverage)}


def write_averages(directory: epath.Path, algorithm: Algorithm, state: TrainState) -> None:
  """Writes the power-function averages of a state, all or none; nothing if there are none, or before the first step."""
  images_seen = int(state.images_seen)
  averages = {name: state.ema[name] for name in power_averages(algorithm)}
  if averages and images_seen:
    arrays = map(np.asarray, jax.tree.leaves(local_copy(averages)))
    write_npz(_file(directory, images_seen), dict(zip(_names(averages), arrays, strict=True)))


def stored_averages(directory: epath.PathLike) -> list[int]:
  """Returns the images seen of all snapshots under `directory`, in order."""
  path = absolute(directory)
  with failing_as(f"cannot read {path}", path):
    files = path.glob("*.npz") if path.exists() else []
    return sorted(int(file.stem) for file in files if file.stem.isdecimal())


def remove_averages_after(directory: epath.Path, images_seen: int) -> None:
  """Removes the snapshots of a future that a run has lost, and what a killed process has left of one."""
  with failing_as(f"cannot change {directory}", directory):
    if directory.exists():
      lost = [_file(directory, stored) for stored in stored_averages(directory) if stored > images_seen]
      for file in [*lost, *directory.glob(".*.tmp")]:
        file.unlink()


def coefficients(stored: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
  """Returns the coefficients of the combination of stored averages that comes closest to the wanted one.

  That is by the L2 distance of their profiles, then scaled to a sum of 1 (algorithm 3 of the paper).

  Args:
    stored: n different profiles.

  Returns:
    float64 [n], and the distance of the combination's profile from the wanted one, relative to the latter's norm.
  """
  products = _inner_products(stored, stored)
  with_wanted = _inner_products(stored, [wanted])[:, 0]
  found = np.linalg.solve(products, with_wanted)
  found /= found.sum()
  square = _inner_products([wanted], [wanted])[0, 0]
  distance = found @ products @ found - 2 * found @ with_wanted + square
  return found, float(np.sqrt(max(distance, 0.0) / square))


def _inner_products(rows: Sequence[Profile], columns: Sequence[Profile]) -> np.ndarray:
  """Returns the integrals over time of the products of profiles (x + 1) / T (t / T)^x, t from 0 to T: [rows, columns].

  With S < T they are (x + 1) (y + 1) / (x + y + 1) / T (S / T)^y, where y belongs to T.
  """

  def parts(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    exponents = {std: power_exponent(std) for _, std in profiles}
    return np.array([p.images_seen for p in profiles], float), np.array([exponents[std] for _, std in profiles])

  (ends, x), (other_ends, y) = (part[:, None] for part in parts(rows)), parts(columns)
  later = np.maximum(ends, other_ends)
  exponent = np.where(ends < other_ends, y, x)
  return (x + 1) * (y + 1) / (x + y + 1) / later * (np.minimum(ends, other_ends) / later) ** exponent


def reconstructed(
  directory: epath.PathLike, algorithm: Algorithm, state: TrainState, wanted: Profile
) -> tuple[TrainState, float]:
  """Returns a state with averages as they were at `wanted.images_seen`, those for samples of `wanted.std`.

  Args:
    directory: of the snapshots; those up to `wanted.images_seen` are combined, in float64.
    algorithm: what was trained.
    state: gives all that is no average.
    wanted: at the images seen of one of the snapshots.

  Returns:
    The state, and the relative distance of `coefficients`.

  Raises:
    UserError: there is no such snapshot, there are too few, or one cannot be read.
  """
  rules, times = power_averages(algorithm), stored_averages(directory)
  if not times:
    raise UserError(f"{directory} holds no averages: train with config.gan.ema_stds, e.g. (0.05, 0.1)")
  if wanted.images_seen not in times:
    nearest = min(times, key=lambda time: abs(time - wanted.images_seen))
    raise UserError(
      f"{directory} has no averages at {wanted.images_seen} images: choose from its {len(times)} snapshots, {times[0]} "
      f"to {times[-1]}; the nearest is {nearest}"
    )
  files = {time: _file(absolute(directory), time) for time in times if time <= wanted.images_seen}
  if len(files) * len(rules) < 2:
    raise UserError(
      f"{directory} has one average up to {wanted.images_seen} images, of which no other can be made: choose more "
      "--images, or train with more config.gan.ema_stds"
    )
  (network,) = {rule.of for rule in rules.values()}
  stored = [Profile(time, rule.std) for time in files for rule in rules.values()]
  found, distance = coefficients(stored, wanted)
  combined: Any = jax.tree.map(lambda leaf: np.zeros(leaf.shape), state.params[network])
  for file, factors in zip(files.values(), found.reshape(len(files), -1), strict=True):
    averages = _read(file, {name: state.ema[name] for name in rules})
    for name, factor in zip(rules, factors, strict=True):
      combined = jax.tree.map(lambda total, leaf, factor=factor: total + factor * leaf, combined, averages[name])
  samples = {name for name, rule in algorithm.averages.items() if isinstance(rule, Average) and rule.of == network}
  averages |= dict.fromkeys(samples, jax.tree.map(np.float32, combined))
  ema = state.ema | jax.device_put(averages)
  return replace(state, ema=ema, images_seen=jnp.int32(wanted.images_seen)), distance


def _file(directory: epath.Path, images_seen: int) -> epath.Path:
  return directory / f"{images_seen:010}.npz"


def _names(averages: Mapping[str, Any]) -> list[str]:
  """Returns the name of each leaf's array, in order."""
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(averages)]


def _read(file: epath.Path, like: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the averages of a snapshot, on the host; raises a UserError if it is damaged or not `like` these."""
  cure = "remove it, and do without this snapshot"
  leaves, structure = jax.tree.flatten(dict(like))
  arrays = read_npz(file, cure)
  read = [arrays.get(name, np.zeros(())) for name in _names(like)]
  if [(array.shape, array.dtype) for array in read] != [(leaf.shape, leaf.dtype) for leaf in leaves]:
    raise UserError(f"{file} has averages of other networks than those of the run: {cure}")
  return dict(jax.tree.unflatten(structure, read))
