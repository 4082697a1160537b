# `make serve` and `make test` are all a newcomer needs; each builds what it stands on.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.serve: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): torch alone is gigabytes, this takes minutes the first time'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml client/pyproject.toml $(VENV)/.serve
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,dev]' --editable ./client
	@touch $@

serve: $(VENV)/.serve  ## install, fetch and verify the backbone, serve on :8000
	$(BIN)/nsnet backbone fetch
	$(BIN)/nsnet serve

test: $(VENV)/.dev  ## run every test but those of `make e2e`, and print the slowest ten
	$(BIN)/nsnet backbone fetch
	$(BIN)/pytest -n 2 --ignore tests/e2e    # processes: more only wait for the cores

e2e: $(VENV)/.dev  ## test the page in Chromium, a rolling restart behind nginx, bulk runs, and a fleet on Ray
	$(BIN)/pytest tests/e2e
	$(BIN)/pytest tests/server --fleet

check: $(VENV)/.dev  ## lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch is installed first, from the index that fits the machine; what only it needs comes with it.
lock: $(VENV)/.dev  ## renew requirements.lock, the versions and hashes in the container image
	printf 'torch\ntorchvision\n' | $(BIN)/uv pip compile pyproject.toml --output-file requirements.lock --upgrade \
	  --universal --python-version 3.11 --generate-hashes --excludes - \
	  --custom-compile-command 'make lock' --quiet

openapi: $(VENV)/.dev  ## renew docs/openapi.json, the contract as committed
	$(BIN)/python -m tests.test_openapi

accuracy: $(VENV)/.dev  ## score a manifest over HTTP: make accuracy MANIFEST=path/to/manifest.csv
	$(BIN)/nsnet backbone fetch
	$(BIN)/python benchmarks/accuracy.py $(MANIFEST)

.PHONY: help serve test e2e check lock openapi accuracy
