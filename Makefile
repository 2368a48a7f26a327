# `make quickstart` and `make test` need only make and Python 3.11 or newer; both set themselves up in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean
.DELETE_ON_ERROR:

quickstart: .venv/installed
	$(BIN)/python main.py --config=configs/stacked_digits.py
	$(BIN)/python -m r3gan_jax.cli.report --workdir=runs/stacked_digits

test: .venv/installed-dev
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

clean:
	rm -rf .venv build *.egg-info
