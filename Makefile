# make env | demo | test | test-all | test-oldest | lint | format | bench | clean
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
RUNS ?= runs/demo

.PHONY: env demo test test-all test-oldest lint format bench clean

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Afterimage needs Python 3.11 or newer, and {sys.executable} is {v.major}.{v.minor}. Try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "Building $(VENV) (a minute or two, once) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	@echo "Adding the test tools ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: env
	@$(BIN)/python -m benchmarks.demo --out $(RUNS)

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

# Importing the others would take longer than these.
GUARDS = $(shell grep -l on_cpu tests/test_*.py)

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow and not speed"
	$(BIN)/python -m pytest -m "speed and not slow" $(GUARDS)

test-all: lint
	$(BIN)/python -m pytest -n 2 -m "not speed"
	$(BIN)/python -m pytest -m speed $(GUARDS)

# With the oldest version of each dependency that pyproject.toml allows.
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -n 2 -m "not slow and not speed"

$(OLDEST)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct -e '.[test]'
	@touch $@

format: $(VENV)/.ready-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) $(OLDEST) runs .pytest_cache .ruff_cache dist build
