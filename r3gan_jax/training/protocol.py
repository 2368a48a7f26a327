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

Protocol = Mapping[str, str | int]
"""Values by name: 'network', 'num_samples', 'seed', ..."""


def keep_protocol(workdir: epath.Path, protocol: Protocol) -> None:
  """Records `protocol` as that of the series in `workdir`, unless one has been recorded."""
  path = workdir / PROTOCOL_FILE
  with failing_as(f"cannot write the protocol of the scores to {path}", path):
    if not path.exists():
      write_whole(path, json.dumps(protocol, indent=2) + "\n")


def protocol_differences(workdir: epath.Path, protocol: Protocol) -> dict[str, tuple[str | int, str | int]]:
  """Returns name -> (recorded, new) values for what differs between the recorded protocol and `protocol`."""
  path = workdir / PROTOCOL_FILE
  with failing_as(f"cannot read the protocol of the scores from {path}", path):
    try:
      kept = json.loads(path.read_text())
      # What older runs did not record counts as the same.
      return {name: (kept[name], value) for name, value in protocol.items() if kept.get(name, value) != value}
    except FileNotFoundError:
      return {}
    except (ValueError, AttributeError):
      raise UserError(f"{path} is damaged: restore it, or delete it and evaluate again") from None


def as_series(scores: Mapping[str, float], differences: Mapping[str, tuple[str | int, str | int]]) -> dict[str, float]:
  """Names numbers as metrics.jsonl does: "metrics/fid", or "metrics/fid (num_samples=1000)" by another protocol."""
  suffix = f" ({', '.join(f'{name}={value}' for name, (_, value) in differences.items())})" if differences else ""
  return {f"metrics/{name}{suffix}": value for name, value in scores.items()}
