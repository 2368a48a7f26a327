#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster, with one process per GPU.
#
#   python3 -m venv .venv && .venv/bin/pip install --editable '.[gpu]'    # once, on a disk that all nodes share
#   NODES=8 launch/slurm.sh submit --config=configs/imagenet64.py --workdir=/scratch/run    # any flags of main.py
#
# Two minutes before its time limit, and when it is preempted, the job saves and is requeued, and resumes. A crash
# requeues it, too, at most MAX_RESTARTS times in all; success and user errors do not.
# launch/slurm.sh --dry_run submit ... prints what it would run. Environment variables and defaults: the first lines of
# this file. sbatch reads its own: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, ...

set -euo pipefail

NODES=${NODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_GPU=${CPUS_PER_GPU:-8} # for decoding and shuffling images
TIME_LIMIT=${TIME_LIMIT:-24:00:00}
JOB_NAME=${JOB_NAME:-r3gan}
MAX_RESTARTS=${MAX_RESTARTS:-100} # requeues, for any reason

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
  job) # run by the batch job, on its first node
    status=0
    # The first process to end must not stop the others while they save.
    run srun --cpus-per-task="$CPUS_PER_GPU" --kill-on-bad-exit=0 --wait=300 .venv/bin/python main.py "${@:2}" ||
      status=$?
    if [[ $status == 0 || $status == 2 ]] || ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
      exit "$status"
    fi
    # After scancel the job is not running; after a preemption SLURM itself has queued it again.
    if [[ $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]; then
      run scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
  '') fail "no command" ;;
  *) fail "unknown command $1" ;;
esac
