# glassbox: `make help` lists what there is.

PYTHON ?= python3
EXTRA ?= $(if $(wildcard .venv/ready-gpu),gpu,cpu)# cpu or gpu; stays what it was
UV_VERSION := 0.13.9

SOURCE ?= synthetic:evidence
OUT ?= data/shards
PRESET ?= demo
BENCH ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(EXTRA)
READY_DEV := $(VENV)/ready-dev

.DEFAULT_GOAL := help
.PHONY: help setup demo shards test test-all bench-input bench-shards lint format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  variables: SOURCE=$(SOURCE) OUT=$(OUT) PRESET=$(PRESET) EXTRA=$(EXTRA) PYTHON=$(PYTHON)"

setup: $(READY) ## make .venv with everything from the lock file (EXTRA=gpu for NVIDIA GPUs)

$(READY): .lock/$(EXTRA).txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Expected Python 3.11 to 3.13. Received: python={v[0]}.{v[1]}. Fix: make setup PYTHON=python3.12.")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(VENV) --compile-bytecode --require-hashes -r .lock/$(EXTRA).txt
	$(BIN)/uv pip install --quiet --python $(VENV) --no-deps --no-build-isolation -e .
	@touch $@

$(READY_DEV): $(READY) .lock/dev.txt
	$(BIN)/uv pip install --quiet --python $(VENV) --compile-bytecode --require-hashes -r .lock/dev.txt
	@touch $@

demo: setup ## shards, training and report of a small example, or of SOURCE=folder:PATH
	rm -rf demo/new
	$(BIN)/glassbox shards build "$(SOURCE)" demo/new
	rm -rf demo/shards demo/run
	mv demo/new demo/shards
	$(BIN)/glassbox train --preset $(PRESET) --data demo/shards --out demo/run
	$(BIN)/glassbox report demo/run

shards: setup ## build a shard set: make shards SOURCE=folder:PATH OUT=DIR
	$(BIN)/glassbox shards build "$(SOURCE)" "$(OUT)"

test: $(READY_DEV) ## the tests, a few minutes
	$(BIN)/python -m pytest -m "not slow"

test-all: $(READY_DEV) ## the tests and the long ones that train on real data
	$(BIN)/python -m pytest

bench-input: $(READY_DEV) ## how fast photos become batches, beside other libraries (options: BENCH="--quick")
	$(BIN)/python tests/benchmarks/input.py $(BENCH)

bench-shards: $(READY_DEV) ## how fast a folder becomes shards, beside other builders
	$(BIN)/python tests/benchmarks/shards.py $(BENCH)

lint: $(READY_DEV) ## ruff, its formatter, and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY_DEV) ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## renew the lock files from pyproject.toml
	for extra in cpu gpu dev; do \
	  $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
	    --extra $$extra $$([ $$extra = cpu ] || echo --constraints .lock/cpu.txt) --custom-compile-command "make lock" -o .lock/$$extra.txt || exit 1; \
	done

clean: ## remove what was built here
	rm -rf $(VENV) demo build *.egg-info
