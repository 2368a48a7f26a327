"""Initialises a run from the parameters of another one: for other data, other classes, another resolution.

Parameters are matched by name; names include the resolution and are the same in networks of every size. A layer (all
parameters of one module) is transferred if the other network has a layer of the same name and shapes, and is
initialised otherwise; so is a network that the other run does not have (LAPGAN has more for a higher resolution). G's
last layer and D's first have one name at every resolution: new blocks next to them start as the identity.

A layer that is to stay frozen must be transferred.

Optimisers start from zero, as in StyleGAN: Adam corrects the bias of all second moments by one count of updates, which
old and new layers would not share. Images seen, and so all schedules, start from zero, too.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from r3gan_jax.algorithms.base import Algorithm
from r3gan_jax.algorithms.capabilities import HasFrozenLayers, HasLeadingRows
from r3gan_jax.errors import UserError
from r3gan_jax.training.mesh import replicated
from r3gan_jax.training.state import TrainState, init_state

_WHOLE = slice(None)


@dataclass(frozen=True)
class Transfer:
  """A plan of which parameters one network takes from another.

  Attributes:
    rows: parameter name -> the indices along its first axis that are transferred.
    lines: the plan as a table, one line per layer.
  """

  rows: Mapping[str, slice]
  lines: tuple[str, ...]

  def __call__(self, initial: Any, source: Any) -> Any:
    """Returns the parameters `initial` with those transferred from `source`; pure and traceable."""
    leaves, source_leaves = flatten_dict(initial, sep="/"), flatten_dict(source, sep="/")
    for name, rows in self.rows.items():
      taken = source_leaves[name]
      leaves[name] = taken if rows == _WHOLE else leaves[name].at[rows].set(taken[rows])
    return unflatten_dict(leaves, sep="/")


def plan_transfer(
  network: str,
  target: Any,
  source: Any,
  leading_rows: Mapping[str, int],
  source_leading_rows: Mapping[str, int],
  frozen: Collection[tuple[str, str]] = (),
) -> Transfer:
  """Matches two trees of parameters.

  Args:
    network: the name of the network.
    target, source: trees of arrays or `jax.ShapeDtypeStruct`s; an empty source: there is no such network.
    leading_rows, source_leading_rows: for this network, see `algorithms.capabilities.HasLeadingRows`.
    frozen: see `algorithms.capabilities.HasFrozenLayers`.

  Raises:
    UserError: no layer of the source's network matches, or one that is frozen does not.
  """
  shapes, source_shapes = ({n: x.shape for n, x in flatten_dict(tree, sep="/").items()} for tree in (target, source))
  rows: dict[str, slice] = {}
  table: list[tuple[str, str, str]] = []

  def is_frozen(layer: str) -> bool:
    return (network, layer.partition("/")[0]) in frozen

  mismatch = ""
  source_layers = _layers(source_shapes)
  for layer, names in _layers(shapes).items():
    listed = _listed(names, shapes)
    if layer not in source_layers:
      table.append((layer, listed, "initialised: not in the source"))
      continue
    leading = {n: min(leading_rows[n], source_leading_rows[n]) for n in names if n in leading_rows}
    equal = source_layers[layer] == names and all(shapes[name] == source_shapes[name] for name in names)
    if equal and all(leading_rows[name] == source_leading_rows[name] for name in leading):
      rows |= dict.fromkeys(names, _WHOLE)
      table.append((layer, listed, "transferred" + ", frozen" * is_frozen(layer)))
    elif source_layers[layer] == names == list(leading) and all(shapes[n][1:] == source_shapes[n][1:] for n in names):
      rows |= {name: slice(count) for name, count in leading.items()}
      some = ", ".join(f"rows 1 to {count} of {_leaf_name(name)}" for name, count in leading.items())
      table.append((layer, listed, f"{some} transferred, the rest initialised"))
    else:
      differing = [name for name in source_layers[layer] if source_shapes[name] != shapes.get(name)]
      there = _listed(differing, source_shapes) or "fewer parameters"
      table.append((layer, listed, f"initialised: {there} in the source"))
      mismatch = mismatch or f"{layer} is {listed} here, {there} in the source"
  if source_shapes and not rows:
    raise UserError(
      f"no layer of its {network} fits: {mismatch or 'no layer has the same name'}: choose config.gan as in the source"
    )
  for layer, _, what in table:
    if is_frozen(layer) and not what.startswith("transferred"):
      raise UserError(
        f"{layer} of the {network} would be frozen as it is initialised ({what}): freeze fewer stages by "
        f"config.gan.freeze_{network}, or choose config.gan as in the source"
      )
  for layer, names in source_layers.items():
    if not any(name in shapes for name in names):
      table.append((layer, _listed(names, source_shapes), "not used"))
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
  """Returns `init_state` with the parameters, carry and averages of `source` that fit, replicated over `mesh`.

  Args:
    algorithm: what to train.
    seed: of the initialisation.
    mesh: all devices.
    source_algorithm: the algorithm of `source`, of the same kind as `algorithm`.
    source: replicated over `mesh`; the result may share its arrays.

  Returns:
    The state, and a table of what was transferred.

  Raises:
    UserError: nothing of one of the networks matches, a frozen layer does not, or no network has the same name.
  """
  abstract = jax.eval_shape(lambda: algorithm.init(jax.random.key(seed)))[0]
  unused = sorted(source.params.keys() - abstract.keys())
  if len(unused) == len(source.params):
    raise UserError(
      f"it has none of the networks {', '.join(abstract)}, but {', '.join(unused)}: choose config.gan as in the source"
    )

  transfers = {
    network: plan_transfer(
      network,
      abstract[network],
      source.params.get(network, {}),
      _leading_rows(algorithm).get(network, {}),
      _leading_rows(source_algorithm).get(network, {}),
      algorithm.frozen if isinstance(algorithm, HasFrozenLayers) else (),
    )
    for network in abstract
  }

  def transferred(name: str, initial: Any, given: Any) -> Any:
    return transfers[name](initial, given) if name in transfers else _with_matching_leaves(initial, given)

  def begin(params: dict[str, Any], carry: dict[str, Any], ema: dict[str, Any]) -> TrainState:
    initial = init_state(algorithm, seed)
    averaged = {name: average.of for name, average in algorithm.averages.items()}
    given = params | carry
    return replace(
      initial,
      params={
        network: transferred(network, initial.params[network], params.get(network, {})) for network in initial.params
      },
      carry={name: transferred(name, initial.carry[name], carry.get(name, {})) for name in initial.carry},
      # An average that the source does not have starts from what it averages.
      ema={name: transferred(of, initial.ema[name], ema.get(name, given.get(of, {}))) for name, of in averaged.items()},
    )

  state = jax.jit(begin, out_shardings=replicated(mesh))(source.params, source.carry, source.ema)
  lines = [line for transfer in transfers.values() for line in transfer.lines]
  return state, "\n".join(lines + [f"{network}: not used" for network in unused])


def _leading_rows(algorithm: Algorithm) -> Mapping[str, Mapping[str, int]]:
  return algorithm.leading_rows if isinstance(algorithm, HasLeadingRows) else {}


def _with_matching_leaves(initial: Any, source: Any) -> Any:
  """Returns the carry `initial` with the leaves of `source` that have the same path and shape."""
  given = dict(jax.tree.leaves_with_path(source))

  def chosen(path: Any, leaf: jax.Array) -> jax.Array:
    return given[path] if path in given and given[path].shape == leaf.shape else leaf

  return jax.tree.map_with_path(chosen, initial)


def _layers(names: Mapping[str, Any]) -> dict[str, list[str]]:
  """Returns layer -> names of its parameters, both in alphabetical order."""
  layers: dict[str, list[str]] = {}
  for name in sorted(names):
    layers.setdefault(name.rpartition("/")[0], []).append(name)
  return layers


def _leaf_name(name: str) -> str:
  return name.rpartition("/")[2]


def _listed(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
  """Returns the parameters of a layer with their shapes, e.g. "bias 64, kernel 3x3x8x64"."""
  return ", ".join(f"{_leaf_name(name)} {'x'.join(map(str, shapes[name]))}" for name in names)
