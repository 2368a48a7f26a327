"""Flags of the commands that several processes can run together: training, sampling, evaluation."""

from absl import flags

from r3gan_jax.training import distributed

_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "With several processes: host:port of process 0; by default SLURM, Open MPI or a TPU pod says so, or there is one.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")


def join_processes(peer_timeout_seconds: int = 100) -> None:
  """Joins the other processes by the flags; call it first in `main`."""
  distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, peer_timeout_seconds)
