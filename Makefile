# `make` alone lists the targets.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PEER := .benchmark/label-studio

.PHONY: help run test lint format docs freeze benchmark benchmark-labeling benchmark-upgrade benchmark-peer benchmark-loop benchmark-loop-whole benchmark-hacks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 24

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Prefloop needs Python 3.11 or newer; set PYTHON=python3.11 (or newer)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(STAMP): pyproject.toml package-lock.json build_frontend.py | $(BIN)/python
	@echo "Installing Prefloop and what it needs into $(VENV) (about a minute)"
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --group dev
	@touch $@

run: $(STAMP) ## start the whole service: database, web, worker (PREFLOOP_HOME, PREFLOOP_PORT)
	@exec $(BIN)/prefloop up

test: $(DEV_STAMP) lint ## lint, types, import rules and every test
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations 12

lint: $(DEV_STAMP) ## style, types and import rules only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP) ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV_STAMP) ## write the settings table into README.md
	$(BIN)/python -c 'import pathlib, re; from app.settings import markdown_table as t; p = pathlib.Path("README.md"); p.write_text(re.sub(r"(?s)(<!-- settings -->\n).*?(\n<!-- /settings -->)", lambda m: m[1] + t() + m[2], p.read_text()))'

freeze: $(DEV_STAMP) ## write down what the newest revision of the schema makes (docs/upgrading.md)
	$(BIN)/python -m tests.schema.freeze $(FREEZE)

benchmark: $(DEV_STAMP) ## speed of training and sampling beside TRL and transformers (DATA="file.jsonl ...": pairs to train on)
	$(BIN)/python -m benchmarks $(DATA)

benchmark-labeling: $(DEV_STAMP) ## the next card in the browser; a task and an answer with 10 thousand and 1 million open comparisons
	$(BIN)/python -m pytest -q -s -p tests.conftest benchmarks/test_desk.py
	$(BIN)/python -m benchmarks.labeling

benchmark-upgrade: $(DEV_STAMP) ## an upgrade of a database with a million comparisons while people label
	$(BIN)/python -m benchmarks.upgrade

$(PEER)/.installed: benchmarks/peer/requirements.txt | $(BIN)/python
	@echo "Installing Label Studio into $(PEER) (a few minutes)"
	$(PYTHON) -m venv --clear $(PEER)
	$(PEER)/bin/pip install --quiet --requirement $<
	@touch $@

benchmark-peer: $(DEV_STAMP) $(PEER)/.installed ## speed of the label path beside Label Studio's (PEER_OPTIONS="FILE --labelers N ...")
	$(BIN)/python -m benchmarks.peer $(PEER_OPTIONS)

benchmark-loop: $(DEV_STAMP) ## what methods learn from 200 judgments: a subset of under 20 minutes (LOOP="--methods ...": other cells)
	$(BIN)/python -m benchmarks.loop $(LOOP)

benchmark-loop-whole: $(DEV_STAMP) ## every method, preference, budget and seed of docs/learning.md: many hours, resumable
	$(BIN)/python -m benchmarks.loop --whole $(LOOP)

benchmark-hacks: $(DEV_STAMP) ## what monitors see of planted reward hacks, and of clean rounds: about ten minutes of one core, resumable (HACKS="--seeds 3 ...")
	$(BIN)/python -m benchmarks.hacks $(HACKS)

clean: ## remove what was installed and built (no data)
	rm -rf $(VENV) $(PEER) static/vendor .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
