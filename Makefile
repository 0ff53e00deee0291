# `make help` says what there is. Everything is installed into .venv and nowhere else.
#
# PYTHON  the interpreter that .venv is made with, 3.11 or newer
# TORCH   the PyTorch to install, as arguments of pip; see docs/deployment.md
# NUM_PROCESSES  of tests, for machines with more than two cores
# ARGS    handed on: make serve ARGS="--port 9000 --workers 2", make test ARGS="-k seed"

PYTHON ?= python3
TORCH ?= torch==2.13.0
NUM_PROCESSES ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Versions that are told early: left to itself, pip searches for minutes and may put in another PyTorch.
TRIED := --constraint constraints.txt --constraint $(VENV)/torch.txt
# A file of tests in each process at a time; compute threads that spin would take the cores from others.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses $(NUM_PROCESSES) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install serve test test-ci test-all fuzz docs check format bench bench-growth device-check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' Makefile | expand -t 12

install: $(VENV)/.dev  ## make .venv with everything for development

serve: $(VENV)/.smalti  ## start the queue, the API and a worker; Ctrl-C stops them
	@$(BIN)/smalti up $(ARGS)

test: $(VENV)/.dev  ## prove that it works: about ten minutes on two cores
	$(PYTEST) $(ARGS)

test-ci: $(VENV)/.dev  ## long mixes over the shipped weights, and fuzz: some twenty minutes more
	$(PYTEST) --dist load -m ci $(ARGS)

fuzz: $(VENV)/.dev  ## try the whole OpenAPI document with Schemathesis: some minutes
	$(PYTEST) -m hours -rP tests/app/test_document_fuzz.py $(ARGS)

docs: $(VENV)/.dev  ## make docs/api.md from the OpenAPI document
	$(BIN)/python -m app.api_page docs/api.md

test-all: $(VENV)/.dev  ## every test, with faults and soaks: hours
	$(PYTEST) -m "" $(ARGS)

check: $(VENV)/.dev  ## lint, formatting, types, who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## rewrite the source in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench  ## measure the service on this machine, and others beside it: eight minutes
	$(BIN)/python benchmarks/serving.py $(ARGS)

bench-growth: $(VENV)/.bench  ## measure what must not grow with workers, queues and hours: half an hour
	$(BIN)/python -m benchmarks.growth $(ARGS)

device-check:  ## check and measure a GPU machine, from wheels if need be: eight minutes
	$(PYTHON) benchmarks/device_check.py --out device-check $(ARGS)

clean:  ## remove .venv and the tools' caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# PyTorch comes first, so that the choice made with TORCH already satisfies what Smalti asks for.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Smalti needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12, say")'
	@echo "Making $(VENV) and installing $(TORCH): once, some minutes" >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(VENV)/torch.txt
	@touch $@

$(VENV)/.smalti: $(VENV)/.torch pyproject.toml client/pyproject.toml constraints.txt
	@echo "Installing Smalti and what it needs" >&2
	$(PIP) $(TRIED) --editable . --editable ./client
	@touch $@

$(VENV)/.dev: $(VENV)/.smalti
	@echo "Installing the tools for tests, checks and training" >&2
	$(PIP) $(TRIED) --editable '.[dev]' --editable './client[all]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "Installing what the benchmark compares with" >&2
	$(PIP) $(TRIED) --editable '.[bench]'
	@touch $@
