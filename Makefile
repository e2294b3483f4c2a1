VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help run test jobs slow real docs check gpu clean

help:  ## Show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: $(STAMP)  ## Install, then prune SmolLM2-135M to 1.25x on this machine (8 to 13 minutes on 2 cores)
	$(BIN)/python launch.py $(ARGS)

test: $(STAMP)  ## Install, then run the unit tests (two to seven minutes on 2 cores)
	$(BIN)/python -m pytest -m unit -n $(WORKERS) --dist loadfile $(ARGS)

jobs: $(STAMP)  ## Run the tests that run launch.py, start processes, train or take seconds (13 to 30 minutes)
	$(BIN)/python -m pytest -m "job and not slow and not gpu" $(ARGS)

slow: $(STAMP)  ## Run the further tests: on real weights, on submitit and ray
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	$(BIN)/python -m pytest -m slow $(ARGS)

real: $(STAMP)  ## Run the slow tests of one job on real weights, up to lm-eval's command line (3 minutes)
	$(BIN)/python -m pytest -m slow tests/test_real.py -k "quality or lm_eval_command_line" $(ARGS)

gpu: $(STAMP)  ## Run what needs a CUDA device: tests, tables, 7B shapes (10 minutes on one H200)
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py $(ARGS)

docs: $(STAMP)  ## Write docs/configuration.md, docs/reproduction.md and the tree of docs/code.md
	$(BIN)/python -m pruning.reference > .configuration.md
	mv .configuration.md docs/configuration.md
	$(BIN)/python -m pruning.reproduction.page > .reproduction.md
	mv .reproduction.md docs/reproduction.md
	$(BIN)/python -m tests.test_docs

check: $(STAMP)  ## Lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:  ## Remove the virtual environment (outputs/ and the cache stay)
	rm -rf $(VENV)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
