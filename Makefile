# make run: install what is missing, then ten simulated silos make one dataset. make test: the tests.
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.PHONY: run quality test test-unit lint install clean

run: $(VENV)/.installed
	$(BIN)/fedsynth run

# The same with more training and more images: about 20 minutes on two CPU cores.
quality: $(VENV)/.installed
	$(BIN)/fedsynth run experiments/digits-quality.toml

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-unit: $(VENV)/.installed-dev
	$(BIN)/pytest --ignore tests/end_to_end

install: $(VENV)/.installed

$(VENV)/bin/uv:
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed: $(VENV)/bin/uv pyproject.toml constraints.txt
	$(UV) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(UV) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .flwr .fedsynth runs
