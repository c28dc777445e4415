# `make` sets up and runs the pipeline, `make test` sets up and runs the tests. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := run
PYTHON ?= python3
# CPU-only machines: make TORCH_INDEX=<the index of PyTorch's CPU builds>, or the wheel brings gigabytes of CUDA.
TORCH_INDEX ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# DVC runs `python -m stages...`: the venv's python has to be the first on PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# A worker a core, each with whole groups of tests (tests/conftest.py); stages take their section's threads all the same.
CORES := -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

.PHONY: run setup setup-dev test test-fast soak lint ui doctor summary help

run: setup  ## set up, run the pipeline, promote what passes the gate, print the table (default)
	@python -m ops.pipeline

setup: $(VENV)/.runtime  ## create or update .venv

setup-dev: $(VENV)/.dev

$(VENV)/.runtime: requirements.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo "$(PYTHON) is not Python 3.11 or 3.12: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.txt (a few minutes the first time)"
	@$(PIP) -r requirements.txt -c requirements.lock
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	@$(PIP) -r requirements-dev.txt -c requirements.lock
	@touch $@

test: setup-dev  ## set up and run all tests
	@python -m pytest $(CORES)

test-fast: setup-dev  ## the tests that take seconds
	@python -m pytest $(CORES) -m "not slow"

soak: setup-dev  ## the long proofs: hundreds of kills instead of a few
	@LATHE_SOAK=1 python -m pytest -m soak --timeout 7200

lint: setup-dev  ## ruff and mypy
	@ruff check . && ruff format --check . && mypy

ui: setup  ## MLflow's pages on http://127.0.0.1:5000
	@DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true MLFLOW_TRACKING_URI=$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} mlflow ui --host 127.0.0.1 --port 5000

doctor: setup  ## what this machine lacks, and what to do
	@python -m ops.doctor

summary: setup  ## the table of the last results
	@python -m ops.summary

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
