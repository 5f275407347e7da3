# make run: install what is missing, then ten simulated silos make one dataset. make test: the tests.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# Compiled once here: where Python may not write its caches, every process would compile torch and diffusers again.
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt
# Processes that share the unit tests.
WORKERS ?= 2
# Real Flower runs and measurements of memory need the machine to themselves.
SERIAL := tests/end_to_end tests/benchmarks
# Those of them that do not.
IN_PROCESS := $(addprefix tests/end_to_end/,test_poisoning.py test_resume_in_process.py)
# A file stays in one process: its tests share what they set up.
PARALLEL := --numprocesses $(WORKERS) --dist loadfile

# The block of keys in pyproject.toml and docs/configuration.md, from the declarations in fedsynth/config.
config: $(VENV)/.installed
	$(BIN)/python -m fedsynth.config

.PHONY: run config quality test test-deployment test-unit lint install clean

run: $(VENV)/.installed
	$(BIN)/fedsynth run

# More training, more noise levels, more images: see the setting's first line for the time it takes.
quality: $(VENV)/.installed
	$(BIN)/fedsynth run experiments/digits-quality.toml

test: lint test-unit
	$(BIN)/pytest $(PARALLEL) $(IN_PROCESS)
	$(BIN)/pytest $(SERIAL) $(IN_PROCESS:%=--ignore=%)

test-unit: $(VENV)/.installed-dev
	$(BIN)/pytest $(PARALLEL) $(SERIAL:%=--ignore=%) --ignore=tests/deployment

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Silos and sweeps killed, links restarted, wrong clocks and certificates, on a real SuperLink: some twenty minutes.
test-deployment: $(VENV)/.installed-dev
	$(BIN)/pytest tests/deployment

install: $(VENV)/.installed

$(VENV)/bin/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed: $(VENV)/bin/uv pyproject.toml constraints.txt
	@echo "installing fedsynth and its packages into $(VENV) (several GB, a few minutes)"
	$(UV) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(UV) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .flwr .fedsynth runs
