# make serve    serve a model on START_PORT (8088): MODEL= a folder, file, hub id or gemma3-270m; else SmolLM2-135M
# make test     run the tests (minutes; needs no GPU)
# make test-all also the long tests, those against transformers on torch, and other clients
# make nightly  everything there is, with thousands of new examples; before a release
# make check    format, lint, types, import directions
# make gpu-check  compile kernels and whole steps for GPUs and hold them to a budget; needs no GPU
# make lab-kit   a folder to take to a machine with a GPU and no network; lab-kit-test proves it without either
# make gpu-test   the tests of that check which need the GPU compiler
# docs/testing.md says more of each.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A machine with an NVIDIA GPU gets JAX's build for the newest CUDA that its driver runs.
EXTRA := $(shell .ci/jax_extra)
CLIENTS := $(basename $(notdir $(wildcard tests/e2e/clients/*.txt)))
GPU_CHECK := $(VENV)/gpu-check
# Two workers, each with whole files, in the order that tests/conftest.py gives them.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest --durations=25
# Of the thousands of files that are installed only those that are imported become bytecode.
INSTALL := -m pip --disable-pip-version-check --quiet install --no-compile
PIP_INSTALL := $(BIN)/python $(INSTALL)
# Of the examples that `make nightly` draws; a number draws those of an earlier run again.
SEED := $(or $(SEED),$(shell date +%s))

.PHONY: serve test test-ci test-all nightly check gpu-check gpu-test lab-kit lab-kit-test clean

# MODEL says the same as CHECKPOINT_PATH.
serve: export CHECKPOINT_PATH := $(or $(MODEL),$(CHECKPOINT_PATH))
serve: $(VENV)/serve
	@exec $(BIN)/python -m rtpjax.start_server

test: $(VENV)/test
	$(PYTEST) $(PARALLEL) -m "not slow and not nightly and not reference and not processes" $(PYTEST_ARGS)

# What .ci/run runs: also those against transformers on torch.
test-ci: $(VENV)/reference
	$(PYTEST) $(PARALLEL) -m "not slow and not nightly" $(PYTEST_ARGS)

test-all: export RTPJAX_CLIENTS = $(CURDIR)/$(VENV)/clients
test-all: $(VENV)/reference $(CLIENTS:%=$(VENV)/clients/%/installed)
	$(PYTEST) $(PARALLEL) -m "not nightly" $(PYTEST_ARGS)

nightly: export RTPJAX_CLIENTS = $(CURDIR)/$(VENV)/clients
nightly: $(VENV)/reference $(CLIENTS:%=$(VENV)/clients/%/installed)
	@echo "Examples are drawn with SEED=$(SEED): make nightly SEED=$(SEED) draws them again."
	$(PYTEST) $(PARALLEL) --hypothesis-profile=nightly --hypothesis-seed=$(SEED) $(PYTEST_ARGS) \
	  || { echo "Failed with SEED=$(SEED)."; exit 1; }
	$(MAKE) gpu-check GPU_CHECK_ARGS=--all
	$(MAKE) gpu-test

check: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_import_direction.py

# JAX_PLATFORMS: with the CUDA plugin there, JAX would look for a GPU. The cache names results by content.
gpu-check: $(GPU_CHECK)/ready
	JAX_PLATFORMS=cpu $(GPU_CHECK)/bin/python -m rtpjax.plan.check \
	  --cache "$${RTPJAX_CACHE:-$$HOME/.cache/rtpjax}/gpu-check" $(GPU_CHECK_ARGS)

# What the tests of the check itself compile.
gpu-test: $(VENV)/test $(GPU_CHECK)/ready
	JAX_PLATFORMS=cpu $(GPU_CHECK)/bin/python -m pytest tests/rtpjax/plan/test_analyze.py tests/rtpjax/plan/test_ptx.py $(PYTEST_ARGS)

lab-kit: $(VENV)/python
	@$(BIN)/python -m rtpjax.lab.kit build build/lab-kit

# Stages of the lab to run there in miniature; none for the server alone.
LAB_STAGES ?= facts,server
lab-kit-test: lab-kit
	@$(BIN)/python -m rtpjax.lab.kit test build/lab-kit $(LAB_STAGES)

clean:
	rm -rf $(VENV) *.egg-info

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "rtpjax needs Python 3.11 or later; set PYTHON=/path/to/python3.13"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' \
	  || echo "Python 3.11 gets JAX 0.10, the last for it; with PYTHON=/path/to/python3.13 you get the newest."
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/serve: $(VENV)/python pyproject.toml
	@echo "Installing rtpjax into $(VENV) (about a minute the first time) ..."
	$(PIP_INSTALL) -e ".[base$(EXTRA)]"
	@touch $@

$(VENV)/test: $(VENV)/python pyproject.toml
	@echo "Installing rtpjax and its test tools into $(VENV) (about a minute the first time) ..."
	$(PIP_INSTALL) -e ".[test$(EXTRA)]"
	@touch $@ $(VENV)/serve

$(VENV)/reference: $(VENV)/test
	$(PIP_INSTALL) -e ".[reference]"
	@touch $@

# Clients whose requirements exclude ours or each other's; tests/e2e/clients says what each needs.
$(VENV)/clients/%/installed: tests/e2e/clients/%.txt $(VENV)/python
	@echo "Installing the client $* ..."
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(INSTALL) -r $<
	@touch $@

# The GPU compiler lives in an environment of its own, which sees the packages of the other one: where
# JAX finds the plugin, it looks for a GPU.
$(GPU_CHECK)/ready: $(VENV)/serve
	@echo "Installing the GPU compiler into $(GPU_CHECK) (about 200 MB) ..."
	$(BIN)/python -m venv $(GPU_CHECK)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > \
	  "$$($(GPU_CHECK)/bin/python -c 'import site; print(site.getsitepackages()[0])')/rtpjax-base.pth"
	version=$$($(BIN)/python -c 'import jaxlib.version as v; print(v.__version__)') && \
	  case $$version in \
	    0.10.*) cuda=cuda12 nvcc='nvidia-cuda-nvcc-cu12>=12.8,<13' ;; \
	    *) cuda=cuda13 nvcc='nvidia-cuda-nvcc>=13,<14' ;; \
	  esac && \
	  $(GPU_CHECK)/bin/python $(INSTALL) --no-deps jax-$$cuda-plugin==$$version jax-$$cuda-pjrt==$$version "$$nvcc"
	@touch $@
