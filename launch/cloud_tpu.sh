#!/usr/bin/env bash
# Trains on a Cloud TPU slice of one or more hosts. Needs gcloud, logged in and with a project.
#
#   export ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-256 NFS=10.0.0.2:/r3gan
#   launch/cloud_tpu.sh create [--queued] [--spot]    # a slice, now or when there is capacity
#   launch/cloud_tpu.sh status [--queued]
#   launch/cloud_tpu.sh install     # copies the last commit to every host, installs it there, mounts NFS
#   launch/cloud_tpu.sh train --config=configs/imagenet64.py --workdir=/mnt/r3gan/imagenet64    # any flags of main.py
#   launch/cloud_tpu.sh log         # follows the log of the first host
#   launch/cloud_tpu.sh stop        # saves; `train` with the same flags resumes
#   launch/cloud_tpu.sh delete [--queued]
#
# Several hosts need a shared work directory: gs://BUCKET/..., or a directory on an NFS share (e.g. Filestore), which
# `install` mounts at /mnt/r3gan. A preempted spot slice does not come back: delete, create, install and train again with
# the same arguments, and training resumes.
# A recipe's config.run.tpu_topology recommends a slice: v5e:2x2 is ACCELERATOR_TYPE=v5litepod-4, v5e:4x8 v5litepod-32.
# launch/cloud_tpu.sh --dry_run COMMAND ... prints what it would run.
# Environment variables and defaults: the first lines of this file. Before commands to several hosts, run
# ssh-add ~/.ssh/google_compute_engine

set -euo pipefail

TPU_NAME=${TPU_NAME:-r3gan}
ZONE=${ZONE:-}
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-4} # or v4-8, v5p-8, v6e-4, ...
RUNTIME_VERSION=${RUNTIME_VERSION:-} # default: the one for the accelerator type
NFS=${NFS:-} # SERVER:/SHARE
PYTHON_VERSION=${PYTHON_VERSION:-3.12} # on the hosts
MAX_RESTARTS=${MAX_RESTARTS:-10} # after crashes, on each host: launch/restart.sh
ARCHIVE=${ARCHIVE:-${TMPDIR:-/tmp}/r3gan_jax.tar.gz}

cd "$(dirname "$0")/.."
source launch/common.sh

# Published in https://cloud.google.com/tpu/docs/runtimes
runtime_version() {
  case $ACCELERATOR_TYPE in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "ACCELERATOR_TYPE=$ACCELERATOR_TYPE is unknown: set RUNTIME_VERSION, too" ;;
  esac
}

# Runs the shell command $2 on the workers $1 ("all" or a number).
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

[[ -n $ZONE ]] || fail "ZONE is not set: e.g. ZONE=us-west4-a"

command=${1:-}
[[ -n $command ]] || fail "no command"
shift
queued='' spot=''
if [[ $command != train ]]; then
  for option in "$@"; do
    case $command:$option in
      create:--queued | status:--queued | delete:--queued) queued=yes ;;
      create:--spot) spot=--spot ;;
      *) fail "$command takes no $option" ;;
    esac
  done
fi

case $command in
  create)
    [[ -n $RUNTIME_VERSION ]] || RUNTIME_VERSION=$(runtime_version)
    # For NFS the hosts must have the same user ids.
    shared=(--zone="$ZONE" --accelerator-type="$ACCELERATOR_TYPE" ${spot:+"$spot"}
      ${NFS:+--metadata=enable-oslogin=TRUE})
    if [[ -n $queued ]]; then
      run gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
        --runtime-version="$RUNTIME_VERSION" "${shared[@]}"
    else
      run gcloud compute tpus tpu-vm create "$TPU_NAME" --version="$RUNTIME_VERSION" "${shared[@]}"
    fi
    ;;
  status)
    if [[ -n $queued ]]; then
      run gcloud compute tpus queued-resources describe "$TPU_NAME" --zone="$ZONE" --format='value(state.state)'
    else
      run gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone="$ZONE" --format='value(state,health)'
    fi
    ;;
  install)
    run git archive --format=tar.gz --output="$ARCHIVE" HEAD
    run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$TPU_NAME:r3gan_jax.tar.gz" --zone="$ZONE" --worker=all
    # The Python of the images is too old.
    on_workers all "mkdir -p r3gan_jax && tar -xzf r3gan_jax.tar.gz -C r3gan_jax && cd r3gan_jax &&\
 export PATH=\$HOME/.local/bin:\$PATH &&\
 { command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh; } &&\
 uv venv --allow-existing --python=$(quoted "$PYTHON_VERSION") .venv &&\
 uv pip install --python=.venv/bin/python --editable '.[tpu,gcs]'"
    if [[ -n $NFS ]]; then
      on_workers all "sudo apt-get -o DPkg::Lock::Timeout=300 install --yes nfs-common && sudo mkdir -p /mnt/r3gan &&\
 { mountpoint -q /mnt/r3gan || sudo mount $(quoted "$NFS") /mnt/r3gan; } && sudo chmod 1777 /mnt/r3gan"
    fi
    ;;
  train)
    need_flags "config workdir" "$@"
    on_workers all "$(start_command r3gan_jax "$@")"
    ;;
  log) on_workers 0 "$(log_command r3gan_jax)" ;;
  stop)
    on_workers all "$(stop_command r3gan_jax)"
    on_workers all "$(wait_command r3gan_jax)"
    ;;
  delete)
    if [[ -n $queued ]]; then
      run gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$ZONE" --force
    else
      run gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$ZONE"
    fi
    ;;
  *) fail "unknown command $command" ;;
esac
