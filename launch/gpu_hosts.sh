#!/usr/bin/env bash
# Trains on the GPUs of several machines, over ssh without passwords.
#
#   export HOSTS="gpu1 gpu2"
#   launch/gpu_hosts.sh install      # copies the last commit to every host, and installs it there
#   launch/gpu_hosts.sh train --config=configs/ffhq64.py --workdir=/nfs/runs/ffhq64    # any flags of main.py
#   launch/gpu_hosts.sh log          # follows the log of the first host
#   launch/gpu_hosts.sh stop         # saves; `train` with the same flags resumes
#
# The hosts need a shared work directory. The first host coordinates: the others must reach it by name on
# COORDINATOR_PORT. launch/gpu_hosts.sh --dry_run COMMAND ... prints what it would run.
# Environment variables and defaults: the first lines of this file.

set -euo pipefail

HOSTS=${HOSTS:-} # separated by spaces
COORDINATOR_PORT=${COORDINATOR_PORT:-8476}
REMOTE_DIRECTORY=${REMOTE_DIRECTORY:-r3gan_jax} # on each host; relative to the home directory
PYTHON=${PYTHON:-python3} # 3.11 or newer, on the hosts
MAX_RESTARTS=${MAX_RESTARTS:-10} # after crashes, on each host: launch/restart.sh
ARCHIVE=${ARCHIVE:-${TMPDIR:-/tmp}/r3gan_jax.tar.gz}

cd "$(dirname "$0")/.."
source launch/common.sh

read -r -a hosts <<< "$HOSTS"
[[ ${#hosts[@]} -gt 0 ]] || fail "HOSTS is not set: e.g. HOSTS=\"gpu1 gpu2\""

case ${1:-} in
  install)
    run git archive --format=tar.gz --output="$ARCHIVE" HEAD
    directory=$(quoted "$REMOTE_DIRECTORY")
    for host in "${hosts[@]}"; do
      run scp "$ARCHIVE" "$host:r3gan_jax.tar.gz"
      run ssh "$host" "mkdir -p $directory && tar -xzf r3gan_jax.tar.gz -C $directory && cd $directory &&" \
        "$(quoted "$PYTHON") -m venv .venv && .venv/bin/pip install --editable '.[gpu]'"
    done
    ;;
  train)
    need_flags "config workdir" "${@:2}"
    for i in "${!hosts[@]}"; do
      run ssh "${hosts[i]}" "$(start_command "$REMOTE_DIRECTORY" "${@:2}" \
        "--coordinator=${hosts[0]#*@}:$COORDINATOR_PORT" "--num_processes=${#hosts[@]}" "--process_id=$i")"
    done
    ;;
  log) run ssh "${hosts[0]}" "$(log_command "$REMOTE_DIRECTORY")" ;;
  stop)
    for command in stop_command wait_command; do # signals all before waiting for the first
      for host in "${hosts[@]}"; do
        run ssh "$host" "$("$command" "$REMOTE_DIRECTORY")"
      done
    done
    ;;
  '') fail "no command" ;;
  *) fail "unknown command $1" ;;
esac
