# `make quickstart` trains and reports, `make test` runs the tests, `make lint` the linters and type checks. Each needs
# only make and Python 3.11 or newer, and installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean
.DELETE_ON_ERROR:

quickstart: .venv/installed
	$(BIN)/python main.py --config=configs/stacked_digits.py
	$(BIN)/python -m r3gan_jax.cli.report --workdir=runs/stacked_digits

test: .venv/installed-dev .venv/libtpu
	$(BIN)/pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources launch/*.sh

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "r3gan_jax needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.py
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# The TPU's compiler, of the version that jax asks for, apart from the environment: the tests compile a step with it.
# Where there is none for this system that test is skipped.
.venv/libtpu: .venv/installed-dev
	$(BIN)/pip install --quiet --no-deps --target $@ "$$($(BIN)/python -c 'import importlib.metadata as metadata; \
		print(next(name.partition(";")[0] for name in metadata.requires("jax") if name.startswith("libtpu")))')" || true

clean:
	rm -rf .venv build *.egg-info
