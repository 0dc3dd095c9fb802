# Every target makes and uses .venv; nothing is needed but Python 3.11+, pip and make.
# The first Python that runs and is new enough; if none is, python3, which then says why not.
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && command -v $$p && break; done),python3)
BIN := .venv/bin
WORKERS ?= 2
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint types floors demo-models docs-tables bench bench-env wheel clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.venv/ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "torch-mi needs Python 3.11 or later; no python3 was found"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "torch-mi needs Python 3.11 or later; $$($(PYTHON) --version) is too old (set PYTHON=/path/to/python3.11)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/ready  ## a trained model forming its prediction, in the terminal and as a page
	$(BIN)/torch-mi demo

test: .venv/ready  ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: format lint types test  ## format, lint, types, tests

format: .venv/ready  ## is everything formatted?
	$(BIN)/ruff format --check .

lint: .venv/ready  ## ruff and the floors
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: .venv/ready  ## strict type check
	$(BIN)/basedpyright

demo-models: export MALLOC_MMAP_THRESHOLD_ := 4000000000
demo-models: export MALLOC_TRIM_THRESHOLD_ := 8000000000
demo-models: .venv/ready  ## retrain the packaged demo models (half an hour each on two cores)
	$(BIN)/python -m training.train
	$(BIN)/python -m training.train --model rwkv

docs-tables: .venv/ready  ## write the pages that are read off the declarations
	$(BIN)/python -m docs.tables

bench-env: .bench-env/ready  ## the libraries that the benchmarks compare with
.bench-env/ready: .venv/ready benchmarks/requirements.txt
	$(PYTHON) -m venv .bench-env
	.bench-env/bin/python -m pip install --quiet --upgrade pip
	.bench-env/bin/python -m pip install --quiet --constraint constraints.txt torch
	.bench-env/bin/python -m pip install --quiet --editable .
	.bench-env/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt
	@touch $@

bench: .bench-env/ready  ## paired ratios against transformers and TransformerLens
	.bench-env/bin/python -m benchmarks.run --json benchmarks/results.json

wheel: .venv/ready  ## build the wheel
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --wheel

clean:  ## remove what was made here
	rm -rf .venv .bench-env dist build .pytest_cache .ruff_cache .hypothesis
