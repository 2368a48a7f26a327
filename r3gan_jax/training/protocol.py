"""The protocol of a run's scores: what they depend on besides the checkpoint and the data.

The first scores of a run fix the protocol of its series in metrics.jsonl; scores by another protocol have series of
their own, so that no curve mixes two.
"""

import json
from collections.abc import Mapping

from etils import epath

from r3gan_jax.errors import UserError
from r3gan_jax.storage import failing_as, write_whole

PROTOCOL_FILE = "protocol.json"

Protocol = Mapping[str, str | int | float]
"""Values by name: 'network', 'num_samples', 'seed', ..."""

_OF_OLDER_RUNS = {"truncation": 1.0}
"""The values that older runs had but did not record; whatever else is missing counts as the same."""


def keep_protocol(workdir: epath.Path, protocol: Protocol) -> None:
  """Records `protocol` as that of the series in `workdir`, unless one has been recorded."""
  path = workdir / PROTOCOL_FILE
  with failing_as(f"cannot write the protocol of the scores to {path}", path):
    if not path.exists():
      write_whole(path, json.dumps(protocol, indent=2) + "\n")


def read_protocol(workdir: epath.Path) -> dict[str, str | int | float]:
  """Returns the recorded protocol, for readers; empty if there is none, or none that can be read."""
  try:
    kept = json.loads((workdir / PROTOCOL_FILE).read_text())
  except (OSError, ValueError):
    return {}
  values = kept.items() if isinstance(kept, dict) else ()
  return {name: value for name, value in values if isinstance(value, str | int | float)}


def protocol_differences(
  workdir: epath.Path, protocol: Protocol
) -> dict[str, tuple[str | int | float, str | int | float]]:
  """Returns name -> (recorded, new) values for what differs between the recorded protocol and `protocol`."""
  path = workdir / PROTOCOL_FILE
  with failing_as(f"cannot read the protocol of the scores from {path}", path):
    try:
      kept = json.loads(path.read_text())
      kept = {**protocol, **_OF_OLDER_RUNS, **kept}
      return {name: (kept[name], value) for name, value in protocol.items() if kept[name] != value}
    except FileNotFoundError:
      return {}
    except (ValueError, TypeError):
      raise UserError(f"{path} is damaged: restore it, or delete it and evaluate again") from None


def as_series(scores: Mapping[str, float], differences: Mapping[str, tuple[object, object]]) -> dict[str, float]:
  """Names numbers as metrics.jsonl does: "metrics/fid", or "metrics/fid (num_samples=1000)" by another protocol."""
  suffix = f" ({', '.join(f'{name}={value}' for name, (_, value) in differences.items())})" if differences else ""
  return {f"metrics/{name}{suffix}": value for name, value in scores.items()}
