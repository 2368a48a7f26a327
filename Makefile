# make quickstart    trains a GAN on handwritten digits and writes a report: runs/stacked_digits/report.html
# make test          runs the tests: about half an hour on two cores
# make lint          checks style, formatting, types, shell scripts and the Dockerfile
# make clean         deletes .venv and what was built
#
# Each needs only make and Python 3.11 or newer (make PYTHON=python3.12 ...), and installs the rest into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean
.DELETE_ON_ERROR:

quickstart: .venv/installed
	$(BIN)/python main.py --config=configs/stacked_digits.py
	$(BIN)/python -m r3gan_jax.cli.report --workdir=runs/stacked_digits

test: .venv/installed-dev .venv/libtpu .venv/gpu_compiler
	$(BIN)/pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources launch/*.sh benchmarks/*.sh
	$(BIN)/hadolint launch/Dockerfile

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "r3gan_jax needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.py
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# The TPU and the GPU compiler, in the versions that jax requires: tests compile a training step with them, and are
# skipped on systems that have none. They are not installed into .venv itself, where they would print errors at every
# start on a CPU.
.venv/libtpu: .venv/installed-dev
	$(BIN)/pip install --quiet --no-deps --upgrade --target $@ "$$($(BIN)/python -c 'import importlib.metadata as metadata; \
		print(next(name.partition(";")[0] for name in metadata.requires("jax") if name.startswith("libtpu")))')" && touch $@ || true

.venv/gpu_compiler: .venv/installed-dev
	V=$$($(BIN)/python -c 'import importlib.metadata as metadata; print(metadata.version("jax"))') && \
		$(BIN)/pip install --quiet --no-deps --upgrade --target $@ \
		jax-cuda13-plugin==$$V jax-cuda13-pjrt==$$V 'nvidia-cuda-nvcc>=13.0.48,<14' && touch $@ || true

clean:
	rm -rf .venv build *.egg-info
