#!/usr/bin/env bash
# Trains on all GPUs of this machine.
#
#   launch/gpu.sh install
#   launch/gpu.sh train --config=configs/cifar10.py --workdir=runs/cifar10    # any flags of main.py
#
# Ctrl-C saves and stops; the same command resumes. launch/gpu.sh --dry_run COMMAND ... prints what it would run.
# Environment variables and defaults: the first lines of this file. CUDA_VISIBLE_DEVICES chooses GPUs.

set -euo pipefail

PYTHON=${PYTHON:-python3} # 3.11 or newer
MAX_RESTARTS=${MAX_RESTARTS:-10} # after crashes: launch/restart.sh

cd "$(dirname "$0")/.."
source launch/common.sh

case ${1:-} in
  install)
    run "$PYTHON" -m venv .venv
    run .venv/bin/pip install --editable '.[gpu]'
    ;;
  train)
    need_flags config "${@:2}"
    # Where it finds no GPU, JAX would train on the CPU without a word.
    run .venv/bin/python -c 'import sys, jax; sys.exit(jax.default_backend() != "gpu")' ||
      fail "JAX finds no GPU here: see nvidia-smi and JAX_PLATFORMS, and run launch/gpu.sh install"
    run exec launch/restart.sh "--max_restarts=$MAX_RESTARTS" .venv/bin/python main.py "${@:2}"
    ;;
  '') fail "no command" ;;
  *) fail "unknown command $1" ;;
esac
