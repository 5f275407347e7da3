# make run: install what is missing, then ten simulated silos make one dataset. make test: the tests.
# The Python to use, by name or path; by default the first that fits.
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3)
FITS := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
VENV := .venv
BIN := $(VENV)/bin
# Compiled once here: where Python may not write its caches, every process would compile torch and diffusers again.
UV := $(BIN)/uv pip install $(if $(CI),--quiet) --compile-bytecode --python $(BIN)/python --constraint constraints.txt
# Processes that share the unit tests, and the deployments, which mostly wait.
WORKERS ?= 2
DEPLOYMENTS ?= 3
# A file stays in one process: its tests share what they set up. Long files first: see tests/conftest.py.
SHARED := --dist loadfile --no-loadscope-reorder --numprocesses
# Real Flower runs, and measurements in processes of their own.
ENGINES := tests/end_to_end tests/benchmarks
APART := $(ENGINES) tests/deployment tests/long
TEST_PARTS := lint test-unit test-engines

.PHONY: run config docs quality test ci test-unit test-engines test-deployment test-long lint coverage durations
.PHONY: install install-dev clean

run: $(VENV)/.installed
	$(BIN)/fedsynth run

# More training, more noise levels, more images: see the setting's first line for the time it takes.
quality: $(VENV)/.installed
	$(BIN)/fedsynth run experiments/digits-quality.toml

# The block of keys in pyproject.toml and docs/configuration.md, from the declarations in fedsynth/config.
config: $(VENV)/.installed
	$(BIN)/python -m fedsynth.config

# The site, into build/site. Strict: a page, link or heading that is not there ends it.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open build/site/index.html"

test:
	@.ci/parts install-dev $(TEST_PARTS)

ci:
	@.ci/parts install-dev $(TEST_PARTS) test-deployment

test-unit: $(VENV)/.installed-dev
	$(BIN)/pytest $(SHARED) $(WORKERS) $(APART:%=--ignore=%)

test-engines: $(VENV)/.installed-dev
	$(BIN)/pytest $(SHARED) $(WORKERS) $(ENGINES)

# Silos killed, links restarted, full disks and wrong certificates, on real SuperLinks.
test-deployment: $(VENV)/.installed-dev
	$(BIN)/pytest $(SHARED) $(DEPLOYMENTS) tests/deployment

# What protects against rare faults: every resume setting, sweeps killed, wrong clocks, memory that grows slowly, every
# Python of this machine.
test-long: $(VENV)/.installed-dev
	$(BIN)/pytest -rs tests/long

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Lines that no test in this process reaches.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage run -m pytest $(APART:%=--ignore=%)
	$(BIN)/coverage report

# Note in tests/durations.json how long every file takes.
durations: $(VENV)/.installed-dev
	$(BIN)/pytest --write-durations $(SHARED) $(WORKERS) $(APART:%=--ignore=%)
	$(BIN)/pytest --write-durations $(SHARED) $(WORKERS) $(ENGINES)
	$(BIN)/pytest --write-durations $(SHARED) $(DEPLOYMENTS) tests/deployment

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(BIN)/uv:
	@for python in $(PYTHONS); do \
		if "$$python" -c '$(FITS)' 2>/dev/null; then exec "$$python" -m venv $(VENV); fi; \
	done; \
	echo "No Python 3.11 to 3.14 with venv among: $(PYTHONS)." \
		"Install one (Debian, Ubuntu: apt install python3-venv), or name it: make run PYTHON=/path/to/python" >&2; \
	exit 1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

$(VENV)/.installed: $(BIN)/uv pyproject.toml constraints.txt
	@echo "installing fedsynth and its packages into $(VENV) (several GB, a few minutes)"
	$(UV) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(UV) --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(UV) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .flwr .fedsynth runs
