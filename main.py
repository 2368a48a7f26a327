"""Trains a GAN: `python main.py --config=configs/stacked_digits.py`.

The same command again resumes the run. Settings are changed with e.g. `--config.batch_size=64`.
"""

from r3gan_jax.cli.memory import keep_memory

if __name__ == "__main__":
  keep_memory()

import jax
from absl import flags, logging
from ml_collections import config_flags

from r3gan_jax import factory, runs
from r3gan_jax.cli.processes import join_processes
from r3gan_jax.cli.runner import run
from r3gan_jax.errors import UserError
from r3gan_jax.storage import as_path
from r3gan_jax.training.distributed import check_same_everywhere, on_first_process
from r3gan_jax.training.logging import make_writer
from r3gan_jax.training.loop import train
from r3gan_jax.training.plan import describe
from r3gan_jax.training.tpu import compile_for_topology, describe_plan
from r3gan_jax.training.workdir import claim_workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, e.g. configs/cifar10.py:unconditional.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/<name of the configuration>.")
_TPU_TOPOLOGY = flags.DEFINE_string("tpu_topology", None, "With --dry_run: plan for this TPU slice, e.g. v5e:4x4.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print parameters, memory and FLOPs of the run, and stop.")


def main() -> None:
  config = _CONFIG.value
  if _TPU_TOPOLOGY.value:
    if not _DRY_RUN.value:
      raise UserError("--tpu_topology plans a run and goes with --dry_run")
    print(describe_plan(compile_for_topology(factory.build_experiment(config, 1, "tpu"), _TPU_TOPOLOGY.value)))
    return
  join_processes(config.run.peer_timeout_seconds)
  experiment = factory.build_experiment(config, jax.device_count())
  if _DRY_RUN.value:
    print(describe(experiment))
    return
  check_same_everywhere("the configuration", config.to_dict())
  loader = factory.build_loader(config)
  scores = runs.build_scores(config, loader.source)
  workdir = as_path(_WORKDIR.value or f"runs/{config.name}")
  start = runs.build_start(config, experiment, workdir)
  on_first_process(lambda: claim_workdir(workdir, config.to_dict()))
  logging.info("training %s on %d x %s in %s", config.name, jax.device_count(), jax.devices()[0].device_kind, workdir)
  writer = make_writer(workdir)
  snapshots = runs.build_snapshots(config, experiment.algorithm, loader, workdir, scores)
  train(experiment, loader, workdir, writer, snapshots, start)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  run(main)
