# The verbs of the house. `make demo` and `make test` work on a fresh machine: both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

# Processes that share the tests: two, because that is what the machines of contributors and of CI have at least.
WORKERS ?= -n 2 --dist loadgroup
# cpu or gpu: which of the two run-time sets is installed, never both.
DEVICE ?= cpu
# Tags the image that `make image` builds.
IMAGE ?= phosphene

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
REQUIREMENTS_STAMP := $(VENV)/.installed-$(DEVICE)
EDITABLE_STAMP := $(VENV)/.editable
PROTOS := $(sort $(wildcard proto/phosphene/v1/*.proto))
GOOGLE_PROTO := build/googleapis/google/rpc/status.proto
CONTRACT := proto/phosphene_v1.binpb

ifeq ($(DEVICE),cpu)
OTHER_DEVICE := gpu
OTHER_PACKAGES := faiss-gpu onnxruntime-gpu
else ifeq ($(DEVICE),gpu)
OTHER_DEVICE := cpu
OTHER_PACKAGES := faiss-cpu onnxruntime
else
$(error DEVICE is '$(DEVICE)'; say DEVICE=cpu or DEVICE=gpu)
endif

.PHONY: help setup check lint types arrows contract stubs test test-all demo proto image
help:
	@echo "make setup      environment in $(VENV) (DEVICE=cpu or gpu; PYTHON=python3.12 to choose one)"
	@echo "make check      lint, types, arrows, contract and its stubs"
	@echo "make test       the fast tests; test-all: the slow ones too"
	@echo "make demo       render, train, index, serve, explain; ONCE=1 ends after that"
	@echo "                ENCODER=, IMAGES=, SAE=, TOKENS= for one's own encoder and photos"
	@echo "make proto      stubs and image of the contract, from proto/; BREAKING=1 where a break is meant"
	@echo "make image      the container image of the service"
	@echo "make bench-NAME benchmarks/NAME.py; QUICK=1 for a few minutes at most"

# -- set-up -----------------------------------------------------------------------------------------------------------

setup: $(EDITABLE_STAMP)
	@:

$(PY):
	@python=$${PYTHON:-}; \
	if [ -z "$$python" ]; then python=$$(command -v python3.11 || command -v python3 || true); fi; \
	if [ -z "$$python" ]; then echo "make setup: no python3 on PATH; install Python 3.11 or newer, or say PYTHON=/path/to/python" >&2; exit 1; fi; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make setup: $$python is $$("$$python" -V 2>&1); Phosphene needs Python 3.11 or newer: say PYTHON=/path/to/python" >&2; exit 1; }; \
	echo "setup: $(VENV) with $$("$$python" -V)"; \
	"$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(REQUIREMENTS_STAMP): $(wildcard requirements/*.txt) | $(PY)
	@echo "setup: installing requirements/$(DEVICE).txt and requirements/dev.txt (minutes, once)"
	@if [ -e $(VENV)/.installed-$(OTHER_DEVICE) ]; then \
	  $(PY) -m pip uninstall --quiet --yes $(OTHER_PACKAGES); rm -f $(VENV)/.installed-$(OTHER_DEVICE); fi
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check -r requirements/$(DEVICE).txt -r requirements/dev.txt
	@touch $@

$(EDITABLE_STAMP): $(REQUIREMENTS_STAMP) pyproject.toml
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "setup: done"

# -- check ------------------------------------------------------------------------------------------------------------

check: lint types arrows contract stubs
	@echo "check: all green"

lint: setup
	@echo "check: ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check . | tail -n 20 >&2; exit 1; }

types: setup
	@echo "check: mypy --strict"
	@$(BIN)/mypy --no-error-summary

arrows: setup
	@echo "check: import-linter"
	@log=$$($(BIN)/lint-imports 2>&1) || { echo "$$log" >&2; exit 1; }

contract: $(GOOGLE_PROTO)
	@echo "check: buf lint, buf breaking"
	@$(BIN)/buf lint
	@$(BIN)/buf breaking proto --against $(CONTRACT)

stubs: $(GOOGLE_PROTO)
	@echo "check: stubs and image agree with proto/"
	@rm -rf build/stubs
	@$(call generate,build/stubs)
	@diff -r --exclude=__init__.py --exclude=__pycache__ build/stubs/phosphene/v1 phosphene/v1 \
	  && cmp -s build/stubs/contract.binpb $(CONTRACT) \
	  || { echo "phosphene/v1 or $(CONTRACT) is not what proto/ generates: run 'make proto'" >&2; exit 1; }

# The one message of others that the contract uses, from the package that brings its Python side.
$(GOOGLE_PROTO): | setup
	@mkdir -p $(@D)
	@cp "$$($(PY) -c 'import google.rpc.status_pb2 as m; print(m.__file__.replace("_pb2.py", ".proto"))')" $@

# -- contract ---------------------------------------------------------------------------------------------------------

# $(call generate,DIR): stubs and their .pyi files under DIR, the image of the contract as DIR/contract.binpb.
define generate
mkdir -p $(1); \
$(PY) -m grpc_tools.protoc -I proto -I build/googleapis \
  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
  --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS); \
for stub in $(1)/phosphene/v1/*_pb2_grpc.py; do grep -q 'add_.*_to_server' "$$stub" || rm -f "$$stub" "$${stub}i"; done; \
$(BIN)/buf build proto --exclude-source-info -o $(1)/contract.binpb
endef

proto: $(GOOGLE_PROTO)
	@if [ -e $(CONTRACT) ] && [ -z "$(BREAKING)" ]; then $(BIN)/buf breaking proto --against $(CONTRACT) || { \
	  echo "make proto: the changes above break clients; where that is meant, say BREAKING=1" >&2; exit 1; }; fi
	@rm -rf build/stubs
	@$(call generate,build/stubs)
	@find phosphene/v1 -maxdepth 1 -name '*_pb2*' -delete
	@cp build/stubs/phosphene/v1/* phosphene/v1/
	@cp build/stubs/contract.binpb $(CONTRACT)
	@echo "proto: phosphene/v1 and $(CONTRACT) are up to date"

# -- run --------------------------------------------------------------------------------------------------------------

test: setup
	@$(PY) -m pytest -q $(WORKERS)

test-all: setup
	@$(PY) -m pytest -q $(WORKERS) -m "slow or not slow"

demo: setup
	@$(PY) -m examples.demo $(if $(ONCE),--once) $(if $(ENCODER),--encoder "$(ENCODER)") $(if $(IMAGES),--images "$(IMAGES)") \
	  $(if $(SAE),--sae "$(SAE)") $(if $(TOKENS),--tokens "$(TOKENS)")

bench-%: setup
	@test -e benchmarks/$*.py || { echo "make bench-$*: no benchmarks/$*.py; there are: $(notdir $(basename $(shell grep -l __main__ benchmarks/*.py 2>/dev/null)))" >&2; exit 1; }
	@mkdir -p build/bench
	@$(PY) -m benchmarks.$* $(if $(QUICK),--quick)

image:
	@command -v docker >/dev/null || { echo "make image: no docker on PATH" >&2; exit 1; }
	docker build --target $(if $(filter gpu,$(DEVICE)),cuda,cpu) --tag $(IMAGE) .
