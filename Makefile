# Set-up, checks and the main job. All that is needed beforehand is make and Python 3.11 or newer
# with venv and pip; every target makes its own environment in .venv.

PYTHON ?= python3
# Processes that run tests (at most MAX_TEST_WORKERS): one more than there are cores, since those
# that wait for a simulation to start leave theirs idle.
TEST_WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
MAX_TEST_WORKERS ?= 8
# More arguments for pytest, such as PYTEST_ARGS="tests/wire -x".
PYTEST_ARGS ?=
# Where `make run` puts its results.
OUT ?= runs/digits

VENV := .venv
IN_VENV := $(VENV)/bin/python -m
# Bytecode is compiled for what is imported, when it is: a small part of what is installed.
PIP_INSTALL := $(IN_VENV) pip install --quiet --quiet --no-input --no-compile --disable-pip-version-check
READY := $(VENV)/.ready
LINKS := .typing/leansplit
FOLDERS := strategies clients server_app experiments

# Where bytecode is not written, each of the many processes that runs and tests start compiles anew
# all that it imports, for some ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint format types links clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

run: $(READY) ## the main job: compare the methods on digits, results in runs/digits
	$(VENV)/bin/leansplit compare digits --out "$(OUT)"

test: $(READY) ## the whole test suite
	$(IN_VENV) pytest -n $(TEST_WORKERS) --maxprocesses $(MAX_TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(READY) ## style: ruff's rules and its formatting
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .

format: $(READY) ## mend what ruff can mend
	$(IN_VENV) ruff check --fix-only --quiet .
	$(IN_VENV) ruff format .

types: $(READY) links ## mypy, strict
	$(IN_VENV) mypy

# mypy does not follow the editable install, which maps five folders to one package; it reads a
# folder of links that looks like the installed package.
links:
	@mkdir -p $(LINKS)
	@find -L $(LINKS) -type l -exec rm -f {} +
	@for path in src/leansplit/* $(FOLDERS); do \
	  link="$(LINKS)/$${path##*/}"; \
	  case "$$path" in src/leansplit/*.py | */py.typed) ;; \
	    *) [ -f "$$path/__init__.py" ] || continue ;; esac; \
	  [ -e "$$link" ] || ln -sfn "../../$$path" "$$link"; \
	done

clean: ## remove caches and build leftovers; keeps .venv and runs
	rm -rf build dist .typing .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src $(FOLDERS) tests -type d -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and alone, as exactly this version: a plain wheel, which may be held locally.
# Anything looser may fetch a build for GPUs of several gigabytes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "leansplit needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(IN_VENV) pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time this takes some minutes"
	@$(PIP_INSTALL) -c constraints.txt torch==2.13.0
	@$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@
