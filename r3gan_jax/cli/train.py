"""Trains a GAN, or continues a run: `python -m r3gan_jax.cli.train --config=configs/stacked_digits.py`.

In the repository, `python main.py` is the same. The same command resumes the run. Flags change settings, e.g.
`--config.batch_size=64`. A recipe is a file, or one that comes along: cli.recipes lists those.
"""

from r3gan_jax.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax
from absl import flags

from r3gan_jax import automatic, factory, runs
from r3gan_jax.cli.shared.processes import join_processes
from r3gan_jax.cli.shared.recipes import define_recipe
from r3gan_jax.cli.shared.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.planning.plan import compile_for_topology, describe, describe_plan
from r3gan_jax.planning.topology import parse_topology

_CONFIG = define_recipe("config", "The recipe, e.g. configs/cifar10.py:unconditional.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory; default: runs/<config.name>.")
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "With --dry_run: plan for this TPU slice (v5e:4x4), or these hosts of GPUs (h100:4x8)."
)
_CHANGE_SETTINGS = flags.DEFINE_bool(
  "change_settings", False, "Continue a run with settings that differ from its own; config.json records the change."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print parameters, memory and FLOPs, and exit.")


def main() -> None:
  workdir = _WORKDIR.value or f"runs/{_CONFIG.value.name}"
  config = automatic.completed(_CONFIG.value, workdir)
  if _TOPOLOGY.value:
    if not _DRY_RUN.value:
      raise UserError("--topology only plans a run: add --dry_run")
    jax.config.update("jax_platforms", "cpu")  # planning needs no device, and must not take one
    platform = parse_topology(_TOPOLOGY.value).device.platform
    print(describe_plan(compile_for_topology(factory.build_experiment(config, 1, platform), _TOPOLOGY.value)))
    return
  join_processes(config.run.peer_timeout_seconds)
  if _DRY_RUN.value:
    print(describe(factory.build_experiment(config, jax.device_count())))
    return
  runs.train_run(config, workdir, _CHANGE_SETTINGS.value)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  run(main)
