#!/usr/bin/env bash
# Tests and measures everything on a machine with one NVIDIA card, in 630 s at most after the installation.
#
#   benchmarks/on_gpu.sh [--out=DIRECTORY]    # results.json and results.md (default: on_gpu)
#
# Installs JAX with CUDA, PyTorch and the tools of the tests into .venv-gpu, unless they are there.

set -euo pipefail

PYTHON=${PYTHON:-python3} # 3.11 or newer

cd "$(dirname "$0")/.."
if [[ ! -e .venv-gpu/installed ]]; then
  "$PYTHON" -m venv .venv-gpu
  .venv-gpu/bin/pip install --quiet --editable '.[gpu,bench,dev]'
  touch .venv-gpu/installed
fi
exec .venv-gpu/bin/python -m benchmarks.on_gpu "$@"
