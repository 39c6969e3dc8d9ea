# `make help` lists what can be done. Everything happens in $(VENV); nothing is installed outside it.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
TESTS_AT_ONCE ?= 2
NODES ?= 1
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
AUDIT := $(VENV)/audit
SHELL := /bin/bash

export PYTHONDONTWRITEBYTECODE = 1
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo results test lint types imports unit integration test-faults test-cluster bench audit services services-stop format clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(INSTALLED) ## A virtual environment with everything pinned (first time: a minute or two)

# uv installs in seconds; pip's own --find-links is passed on to it, so that a local torch build is found.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" VIRTUAL_ENV=$(VENV) \
		$(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## The whole flow on this machine, from nothing, with pictures (minutes on 2 cores)
	@$(BIN)/ldznet demo --out $(DEMO)

results: setup ## docs/results.md again: networks trained and scored on scenes (hours on 2 cores)
	@$(BIN)/python -m jobs.results

test: setup lint types imports unit integration ## What CI runs: lint, types, import rules, all tests

lint: setup ## Style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## Static types: strict, and of the tests the calls
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file tests/mypy.ini

imports: setup ## jobs -> pipeline -> ldznet, never back
	@$(BIN)/lint-imports

unit: setup ## Quick tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile tests/unit tests/reference

integration: setup ## Tests with real Ray, S3, DeepSpeed and MLflow
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile tests/integration tests/fault

test-faults: setup ## The long form of the fault tests: hundreds of kills, every fault of a store
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --long --timeout 3600 tests/fault

test-cluster: setup ## Tests marked long: several nodes, submitted jobs, grids, kills: most of an hour
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --long --timeout 3600 -m long tests/integration tests/fault

bench: setup ## Benchmarks, both sides of each in one run; docs/benchmarks.md is made from them
	@$(BIN)/python -m tests.benchmarks.run_all

# In an environment of its own: it is no part of the project, and asks the network what is known of each pin.
audit: setup ## Known holes in the pinned packages (pip-audit; needs the network)
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	@$(AUDIT)/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

services: setup ## SeaweedFS, MLflow and Ray (NODES=2: two nodes) on this machine, on loopback, until services-stop
	@$(BIN)/ldznet services start --nodes $(NODES)

services-stop: setup ## Stop them
	@$(BIN)/ldznet services stop

format: setup ## Format the code and mend what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove the virtual environment, caches and what runs left behind; services that run are stopped
	@test ! -x $(BIN)/ldznet || test ! -d runs/services || $(BIN)/ldznet services stop
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info
