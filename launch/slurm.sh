#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: one process a GPU.
#
#   python3 -m venv .venv && .venv/bin/pip install --editable '.[gpu]'    # once, where the compute nodes see it
#   NODES=8 launch/slurm.sh submit --config=configs/imagenet64.py --workdir=/scratch/run    # any flags of main.py
#
# Two minutes before its time limit, and when it is preempted, the job saves and queues again, and resumes. It queues
# again after a crash, too, MAX_RESTARTS times in all; not when it is done, nor after a mistake of the user's.
# launch/slurm.sh --dry_run submit ... prints what it would run. Variables of the environment, with their defaults: the
# first lines of this file. sbatch reads its own: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, ...

set -euo pipefail

NODES=${NODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_GPU=${CPUS_PER_GPU:-8} # they decode and shuffle images
TIME_LIMIT=${TIME_LIMIT:-24:00:00}
JOB_NAME=${JOB_NAME:-r3gan}
MAX_RESTARTS=${MAX_RESTARTS:-100} # queueing again, for whatever reason

cd "$(dirname "$0")/.."
source launch/common.sh

case ${1:-} in
  submit)
    need_flags "config workdir" "${@:2}"
    run sbatch --job-name="$JOB_NAME" --output="slurm-%x-%j.log" --open-mode=append --chdir="$PWD" \
      --nodes="$NODES" --ntasks-per-node="$GPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE" \
      --cpus-per-task="$CPUS_PER_GPU" --time="$TIME_LIMIT" --signal=TERM@120 --requeue \
      --wrap="$(quoted launch/slurm.sh job "${@:2}")"
    ;;
  job) # what the batch job runs, on its first node
    status=0
    # The first process to end must not take the others with it while they save.
    run srun --cpus-per-task="$CPUS_PER_GPU" --kill-on-bad-exit=0 --wait=300 .venv/bin/python main.py "${@:2}" ||
      status=$?
    if [[ $status == 0 || $status == 2 ]] || ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
      exit "$status"
    fi
    # After scancel it is not running any more; after a preemption SLURM has queued it itself.
    if [[ $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]; then
      run scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
  '') fail "which command?" ;;
  *) fail "unknown command $1" ;;
esac
