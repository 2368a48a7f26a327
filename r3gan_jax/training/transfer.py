"""The start of a run from parameters of another one: on other data, of other classes, at another resolution.

Parameters are known by their names, which say in networks of every size what they are for, their resolution included.
A layer, the parameters that stand together in one module, is taken over where the other network has one of the same
name and shapes, and is initialised otherwise. G's last layer and D's first go along whatever their resolution, if they
fit: the new blocks before and after them begin as the identity.

Optimisers start anew, as in StyleGAN's practice: Adam corrects the bias of all second moments by one count of updates,
which old and new layers would not share. So do images seen, and with them every schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from r3gan_jax.algorithms.base import Algorithm, HasLeadingRows
from r3gan_jax.errors import UserError
from r3gan_jax.training.mesh import replicated
from r3gan_jax.training.state import TrainState, init_state

_WHOLE = slice(None)


@dataclass(frozen=True)
class Transfer:
  """What one network takes over of another.

  Attributes:
    rows: of each parameter that is taken, by name, which indices along its first axis.
    lines: a table of it, a line a layer.
  """

  rows: Mapping[str, slice]
  lines: tuple[str, ...]

  def __call__(self, initial: Any, source: Any) -> Any:
    """`initial`, a tree of parameters, with what is taken of `source`; pure and traceable."""
    leaves, source_leaves = flatten_dict(initial, sep="/"), flatten_dict(source, sep="/")
    for name, rows in self.rows.items():
      taken = source_leaves[name]
      leaves[name] = taken if rows == _WHOLE else leaves[name].at[rows].set(taken[rows])
    return unflatten_dict(leaves, sep="/")


def plan_transfer(
  network: str, target: Any, source: Any, leading_rows: Mapping[str, int], source_leading_rows: Mapping[str, int]
) -> Transfer:
  """Matches two trees of parameters.

  Args:
    network: their name.
    target, source: the trees, arrays or `jax.ShapeDtypeStruct`s.
    leading_rows, source_leading_rows: of this network, see `algorithms.base.HasLeadingRows`.

  Raises:
    UserError: not one layer matches.
  """
  shapes, source_shapes = ({n: x.shape for n, x in flatten_dict(tree, sep="/").items()} for tree in (target, source))
  rows: dict[str, slice] = {}
  table: list[tuple[str, str, str]] = []
  unlike = ""
  source_layers = _layers(source_shapes)
  for layer, names in _layers(shapes).items():
    listed = ", ".join(f"{_last(name)} {_by(shapes[name])}" for name in names)
    if layer not in source_layers:
      table.append((layer, listed, "initialised: not there"))
      continue
    leading = {n: min(leading_rows[n], source_leading_rows[n]) for n in names if n in leading_rows}
    equal = source_layers[layer] == names and all(shapes[name] == source_shapes[name] for name in names)
    if equal and all(leading_rows[name] == source_leading_rows[name] for name in leading):
      rows |= dict.fromkeys(names, _WHOLE)
      table.append((layer, listed, "taken"))
    elif source_layers[layer] == names == list(leading) and all(shapes[n][1:] == source_shapes[n][1:] for n in names):
      rows |= {name: slice(count) for name, count in leading.items()}
      some = ", ".join(f"rows 1 to {count} of {_last(name)}" for name, count in leading.items())
      table.append((layer, listed, f"{some} taken; others, if any, initialised"))
    else:
      differing = [name for name in source_layers[layer] if source_shapes[name] != shapes.get(name)]
      there = ", ".join(f"{_last(name)} {_by(source_shapes[name])}" for name in differing) or "fewer parameters"
      table.append((layer, listed, f"initialised: {there} there"))
      unlike = unlike or f"{layer} is {listed} here, {there} there"
  if not rows:
    raise UserError(
      f"nothing of its {network} fits into this one: {unlike or 'no layer has the same name'}: choose config.gan "
      "as it was there"
    )
  for layer, names in source_layers.items():
    if not any(name in shapes for name in names):
      table.append((layer, ", ".join(f"{_last(name)} {_by(source_shapes[name])}" for name in names), "left out"))
  widths = [max(len(line[column]) for line in table) for column in (0, 1)]
  lines = (f"  {layer:{widths[0]}}  {listed:{widths[1]}}  {what}" for layer, listed, what in table)
  return Transfer(rows, (f"{network}:", *lines))


def transferred_state(
  algorithm: Algorithm,
  seed: int,
  mesh: Mesh,
  source_algorithm: Algorithm,
  source: TrainState,
) -> tuple[TrainState, str]:
  """`init_state`, replicated over `mesh`, with what fits of `source`'s parameters and state, and of their averages.

  Args:
    source_algorithm: what `source` is a state of; of the same kind as `algorithm`.
    source: replicated over `mesh`; its arrays may live on in the result.

  Returns:
    The state, and a table of what was taken and what was not.

  Raises:
    UserError: of one of the networks nothing matches.
  """
  abstract = jax.eval_shape(lambda: algorithm.init(jax.random.key(seed)))[0]

  transfers = {
    network: plan_transfer(
      network,
      abstract[network],
      source.params[network],
      _leading_rows(algorithm).get(network, {}),
      _leading_rows(source_algorithm).get(network, {}),
    )
    for network in abstract
  }

  def take(of: str, initial: Any, there: Any) -> Any:
    return transfers[of](initial, there) if of in transfers else _where_alike(initial, there)

  def begin(params: dict[str, Any], carry: dict[str, Any], ema: dict[str, Any]) -> TrainState:
    initial = init_state(algorithm, seed)
    averaged = {name: average.of for name, average in algorithm.averages.items()}
    return replace(
      initial,
      params={network: take(network, initial.params[network], params[network]) for network in initial.params},
      carry={name: take(name, initial.carry[name], carry.get(name, {})) for name in initial.carry},
      ema={name: take(of, initial.ema[name], ema.get(name, {})) for name, of in averaged.items()},
    )

  state = jax.jit(begin, out_shardings=replicated(mesh))(source.params, source.carry, source.ema)
  return state, "\n".join(line for transfer in transfers.values() for line in transfer.lines)


def _leading_rows(algorithm: Algorithm) -> Mapping[str, Mapping[str, int]]:
  return algorithm.leading_rows if isinstance(algorithm, HasLeadingRows) else {}


def _where_alike(initial: Any, source: Any) -> Any:
  """`initial`, a tree of state beside the parameters, with the leaves of `source` of the same places and shapes."""
  there = dict(jax.tree.leaves_with_path(source))

  def taken(path: Any, leaf: jax.Array) -> jax.Array:
    return there[path] if path in there and there[path].shape == leaf.shape else leaf

  return jax.tree.map_with_path(taken, initial)


def _layers(names: Mapping[str, Any]) -> dict[str, list[str]]:
  """Layer -> the names of its parameters, both in alphabetical order."""
  layers: dict[str, list[str]] = {}
  for name in sorted(names):
    layers.setdefault(name.rpartition("/")[0], []).append(name)
  return layers


def _last(name: str) -> str:
  return name.rpartition("/")[2]


def _by(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))
