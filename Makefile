# The interface: `make demo`, `make test`, `make lint`, `make docs`. Each creates .venv first where it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# One thread a test process: pytest-xdist already uses every core, and small tensors gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# What depends most on the versions of libraries: files, images, networks, conversion, metrics, recipes, the command line.
CORE_TESTS := tests/configs tests/core tests/pretrain/objectives tests/pretrain/test_config.py tests/transfer/convert \
  tests/transfer/cli tests/transfer/test_results.py tests/transfer/report/test_write.py \
  tests/transfer/tasks/classification/test_neighbors.py tests/transfer/tasks/detection/test_coco_matching.py \
  tests/transfer/tasks/detection/test_coco_metrics.py tests/slurm/test_inline.py tests/slurm/test_files.py

.PHONY: demo test test-lowest wheel lint docs format clean

demo: $(VENV)/.installed
	$(BIN)/carryover demo --out runs/demo

test: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist worksteal

# The core of the suite with the lowest versions that pyproject.toml states.
test-lowest: $(LOWEST)/.installed
	$(TEST_ENV) $(LOWEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(CORE_TESTS)

# The wheel, installed alone in an empty environment and used there.
wheel:
	PYTHON=$(PYTHON) .ci/wheel

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict: a link, an anchor or a name of the API that is not there is an error.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir build/site

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[mmseg,timm,detectron2,test,lint,docs]'
	touch $@

$(LOWEST)/.installed: pyproject.toml requirements/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint requirements/lowest.txt --editable '.[timm,parquet]' \
	  pytest pytest-xdist pytest-timeout hypothesis lightly
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
