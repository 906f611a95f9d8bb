# Every verb that needs Python creates .venv and installs first; a second run starts at once.
# Serving needs less than developing, and starts sooner without the rest.
VENV := .venv
BIN := $(VENV)/bin
SERVING := $(VENV)/.installed
DEVELOPING := $(VENV)/.installed-dev
PYTHON ?= python3
# What is installed when no torch is there yet; may carry pip options, for instance an index with CPU-only builds.
TORCH_SPEC ?= torch==2.14.1 torchvision==0.29.1

.DEFAULT_GOAL := help
.PHONY: help install serve test lint type format bench e2e chaos load

help:
	@echo "make install | serve | test | lint | type | format | bench | e2e | chaos | load"

install: $(DEVELOPING)

$(SERVING): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed; say make PYTHON=python3.x")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch, torchvision' 2>/dev/null || $(BIN)/pip install $(TORCH_SPEC)
	$(BIN)/pip install -e .
	@$(BIN)/python -c 'import torch, torchvision' || { echo "torch and torchvision do not fit together: remove $(VENV), and give both in TORCH_SPEC" >&2; exit 1; }
	@touch $@

$(DEVELOPING): $(SERVING)
	$(BIN)/pip install -e '.[dev]'
	@touch $@

serve: $(SERVING)
	$(BIN)/safelight serve

test: $(DEVELOPING)
	$(BIN)/pytest

lint: $(DEVELOPING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(DEVELOPING)
	$(BIN)/mypy

format: $(DEVELOPING)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The long forms of what `make test` runs in short.
e2e chaos: $(DEVELOPING)
	@ls tests/$@/test_*.py >/dev/null 2>&1 || { echo "make $@: there are no tests in tests/$@ yet" >&2; exit 1; }
	$(BIN)/pytest tests/$@ --long

bench: $(DEVELOPING)
	$(BIN)/python -m tests.bench.update
	$(BIN)/safelight bench

LOADING := $(VENV)/.installed-load

$(LOADING): $(SERVING)
	$(BIN)/pip install -e '.[load]'
	@touch $@

load: $(LOADING)
	$(BIN)/python -m loadtests
