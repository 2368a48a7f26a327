"""What every comparison has: entries, each with a control that lacks only its idea, and a common budget and protocol.

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/NAME.py:VARIANT --out=runs/NAME

trains all entries with several seeds. Flags change settings, e.g. `--comparison.multiply_adds=1e12` or
`--comparison.entries.dcgan.config.batch_size=64`.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict


def entry(config: ConfigDict, group: str, control: str = "", given: str = "") -> dict[str, object]:
  """Returns an entry.

  Args:
    config: what is trained. A comparison with a budget scales its length, and with it what `config.gan` counts in
      images.
    group: what is alike; differences count within a group.
    control: the entry that lacks only the idea of this one; "" if there is none.
    given: what it gets beyond the common budget, and where the protocol is unfair to it; shown below the table.
  """
  return {"config": config, "group": group, "control": control, "given": given}


def get_config(name: str, title: str, entries: Mapping[str, dict[str, object]]) -> ConfigDict:
  """Returns a comparison of entries by name, in the order of the table."""
  comparison = ConfigDict(
    {
      "name": name,  # of its directories, for runs and for results
      "title": title,  # of the page of results
      # Of each run, forward and backward passes of all networks; 0: each entry's own config.run.total_images
      "multiply_adds": 0.0,
      # At the end of each run, of `samples` samples; those of classes only where an entry is conditional. The scores
      # during a run are those of its config.run.
      "metrics": ("fid", "precision_recall"),
      "samples": 10_000,
      "entries": dict(entries),
      "order": tuple(entries),
    },
    type_safe=False,  # a budget may be given as 1e12 or as an int
  )
  return comparison.lock()
