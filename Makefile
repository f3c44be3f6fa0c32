PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# Set-up takes minutes, and whoever ends it wants to know that nothing is broken.
SET_UP = trap 'echo "interrupted: the same command continues" >&2; exit 130' INT;
VENV = import signal, venv; signal.signal(signal.SIGINT, signal.SIG_DFL); venv.main([".venv"])
CONFIG ?= deployments/configs/tiny.toml
export CORPUS

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast canary check story serve clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

.venv/.installed: pyproject.toml constraints.txt
	@echo "setting up .venv (once; this takes two to five minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed, this is " + sys.version)'
	@$(SET_UP) $(PYTHON) -c '$(VENV)'
	@$(SET_UP) $(INSTALL) --editable .
	@touch $@

.venv/.developing: .venv/.installed
	@echo "adding the development tools to .venv"
	@$(SET_UP) $(INSTALL) --editable '.[dev]'
	@touch $@

demo: .venv/.installed ## train a small model on Python's standard library, or on CORPUS=path/to/text
	@$(BIN)/python -m deployments pretrain --config $(CONFIG) $(if $(CORPUS),--corpus.paths "$$CORPUS")

test: .venv/.developing ## run the tests
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# No server, no training, no terminal.
FAST = $(addprefix tests/lmcore/,settings store tokenizer $(notdir $(wildcard tests/lmcore/test_*.py))) \
	$(addprefix tests/deployments/test_,declaration.py containers.py configs.py)
test-fast: .venv/.developing ## run the tests that take a minute
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(FAST)

# Beyond the ranges of pyproject.toml, which follow what passed here.
canary: ## run the tests on the newest Prefect, torch and transformers, and list what fails
	@$(PYTHON) -m venv .canary
	@.canary/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@.canary/bin/python -m pip install --quiet --disable-pip-version-check --upgrade prefect torch transformers
	@.canary/bin/python -m pip list --disable-pip-version-check | grep --extended-regexp '^(prefect|torch|transformers) '
	@.canary/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --tb line -r fE

check: .venv/.developing ## lint, types and import walls
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

story: .venv/.developing ## four weeks of a model that is trained again by itself, in minutes
	@$(BIN)/python -m tests.story

serve: .venv/.installed ## Prefect server and the flows' deployments, on this machine only
	@$(BIN)/python -m deployments serve

clean: ## remove what set-up and tools made; keeps the store
	rm -rf .venv .canary build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
