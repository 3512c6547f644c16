# make run    the main job: a real model through SFT, reward model, PPO, evaluation and report
# make test   the tests that run in minutes
# make proof  all of them
# make lint   style and types
#
# Needs Python 3.11 or newer and nothing else. Without a GPU, PIP_EXTRA_INDEX_URL may name an index of CPU builds of torch.

VENV := .venv
BIN := $(VENV)/bin
WORKS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c "$(WORKS)" >/dev/null 2>&1; then echo $$python; break; fi; done)
# Not compiled ahead: of the thousands of files that come along few are ever imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
ARGS ?=

.PHONY: run test proof lint clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed
	$(BIN)/whelp run $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not proof" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

proof: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q $(ARGS)

lint: $(VENV)/.installed-dev
	@$(PIP) -e ".[lint]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

clean:
	rm -rf $(VENV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found. Install one (Debian: python3-venv)," \
		"or name it: make PYTHON=/path/to/python3"; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing whelp (once; torch is large)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing whelp and what its tests need (once; torch is large)"
	@$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed
