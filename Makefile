# make serve    serve a model on START_PORT (8088); the embedded SmolLM2-135M unless CHECKPOINT_PATH is set
# make test     run the tests (about 5 minutes; needs no GPU)
# make test-all also the long tests, those against transformers on torch, and other clients
# make check    format, lint, types, import directions

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A machine with an NVIDIA GPU gets JAX's CUDA build.
EXTRA := $(shell nvidia-smi -L >/dev/null 2>&1 && echo ,cuda12)
CLIENTS := $(basename $(notdir $(wildcard tests/e2e/clients/*.txt)))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: serve test test-all check clean

serve: $(VENV)/serve
	@exec $(BIN)/python -m rtpjax.start_server

test: $(VENV)/test
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/reference $(CLIENTS:%=$(VENV)/clients/%/installed)
	RTPJAX_CLIENTS=$(CURDIR)/$(VENV)/clients $(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_import_direction.py

clean:
	rm -rf $(VENV) *.egg-info

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "rtpjax needs Python 3.11 or later; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/serve: $(VENV)/python pyproject.toml
	@echo "Installing rtpjax into $(VENV) (about a minute the first time) ..."
	$(PIP) install -e ".[base$(EXTRA)]"
	@touch $@

$(VENV)/test: $(VENV)/python pyproject.toml
	@echo "Installing rtpjax and its test tools into $(VENV) (about a minute the first time) ..."
	$(PIP) install -e ".[test$(EXTRA)]"
	@touch $@ $(VENV)/serve

$(VENV)/reference: $(VENV)/test
	$(PIP) install -e ".[reference]"
	@touch $@

# Clients whose requirements exclude ours or each other's; tests/e2e/clients says what each needs.
$(VENV)/clients/%/installed: tests/e2e/clients/%.txt $(VENV)/python
	@echo "Installing the client $* ..."
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install -r $<
	@touch $@
