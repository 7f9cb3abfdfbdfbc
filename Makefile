# Two commands: `make quickstart` and `make test`. Both make .venv if it is missing.
PYTHON ?= python3
RUN := .venv/bin/python
DEMO_FLAGS ?=

.PHONY: quickstart test test-all lint clean

quickstart: .venv/installed
	$(RUN) -m soarflow demo $(DEMO_FLAGS)

test: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

test-all: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch .venv/installed

clean:
	rm -rf .venv quickstart output
