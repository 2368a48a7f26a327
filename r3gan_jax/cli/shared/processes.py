"""The flags of commands that several processes run together: training, sampling, evaluation."""

from absl import flags

from r3gan_jax.training import distributed

_COORDINATOR = flags.DEFINE_string("coordinator", None, "Of several processes: host:port of the first one.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def join_processes(peer_timeout_seconds: int = 100) -> None:
  """`distributed.initialize` by the flags; for the top of a `main` that several processes run together."""
  distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, peer_timeout_seconds)
