# Two commands do everything on a fresh machine: `make train` and `make test`.
# Overrides go through ARGS:  make train ARGS='model=lstm data=mnist'

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
ARGS   ?=
LOGDIR ?= outputs

# Overrides that are given to make itself would be ignored: `make train model=lstm` would train another model.
TYPED := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
STRAY := $(filter-out ARGS PYTHON VENV LOGDIR WORKERS -% MAKE%,$(TYPED))
ifneq ($(STRAY),)
$(error put overrides into ARGS: make $(MAKECMDGOALS) ARGS='$(foreach v,$(STRAY),$(v)=$($(v)))')
endif

.PHONY: help setup train test coverage torture gpu-check lint format bench tensorboard clean

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(READY)  ## make .venv and install everything into it

# uv is several times faster than pip; where it cannot be had, pip does. Both compile what they install: torch and
# Lightning take 7 s of a start otherwise, of each one where no bytecode may be written.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true); Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	if $(PY) -m pip install --quiet uv; then \
	  $(PY) -m uv pip install --quiet --compile-bytecode --python $(PY) -r pyproject.toml --extra dev; \
	else \
	  $(PY) -m pip install --quiet '.[dev]'; \
	fi
	@touch $@

train: setup     ## train experiment=digits, or what ARGS says in its place
	$(PY) -m src.train $(or $(ARGS),experiment=digits)

# Most tests start commands whose time is imports, or wait for them: one process more than cores, of one thread each.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() + 1))')
test: setup      ## run the tests; ARGS goes to pytest
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder --durations=15 $(ARGS)

coverage: setup  ## run the tests and say which lines they reach; that takes half as long again and more
	$(MAKE) test ARGS="--cov --cov-report=term $(ARGS)"

torture: setup   ## kill runs, fill disks, feed nonsense, 20 minutes; ARGS='--only kills --seed 3' ...
	$(PY) -m tests.torture $(ARGS)

gpu-check: setup ## check all that needs a GPU, on one; ARGS='--on cpu --slow 5' rehearses it
	$(PY) -m tests.gpu_check $(ARGS)

lint: setup      ## check style and format
	$(PY) -m ruff check src hydra_plugins tests
	$(PY) -m ruff format --check src hydra_plugins tests

format: setup    ## mend style and format
	$(PY) -m ruff check --fix src hydra_plugins tests
	$(PY) -m ruff format src hydra_plugins tests

bench: setup     ## measure this machine's speed; half an hour and more on 2 cores, with nothing else running
	$(PY) -m src.benchmark $(ARGS)

tensorboard: setup ## the dashboard of every run below LOGDIR (outputs)
	$(PY) -m tensorboard.main --logdir $(LOGDIR)

clean:           ## remove the environment and tool caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .coverage*
