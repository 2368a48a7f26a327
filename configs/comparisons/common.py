"""What every comparison has: entries, each with a control that lacks only its idea, and a common budget and protocol.

    python -m r3gan_jax.cli.compare --comparison=configs/comparisons/NAME.py:VARIANT --out=runs/NAME

trains all entries with several seeds. Flags change settings, e.g. `--comparison.multiply_adds=1e12` or
`--comparison.entries.dcgan.config.batch_size=64`.
"""

from r3gan_jax.trials import default_comparison as get_config
from r3gan_jax.trials import entry

__all__ = ["entry", "get_config"]
