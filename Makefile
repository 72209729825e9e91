# `make` alone lists the targets.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
NODE_STAMP := node_modules/.installed
PEER := .benchmark/label-studio
# Four processes keep two cores busy while some wait for a browser or another process.
TESTERS ?= 4
PYTEST := $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder
TYPES := $(BIN)/mypy && $(BIN)/lint-imports
TRAINER_TESTS := tests/trainer tests/acceptance tests/benchmarks
FAST_TESTS := tests/domain tests/access tests/labeling tests/rounds/test_service.py tests/app/test_every_route.py tests/app/test_deployment.py \
	tests/app/test_locks.py tests/browser/test_labeling_flow.py \
	$(addprefix tests/trainer/test_,bradley_terry.py gae.py kl.py group_algorithm.py preference.py ppo_algorithm.py data.py)

.PHONY: help run test test-web test-trainer test-fast test-js lint style types lint-js format hooks lock docs freeze benchmark benchmark-labeling benchmark-upgrade benchmark-peer benchmark-loop benchmark-loop-whole benchmark-hacks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 24

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Prefloop needs Python 3.11 or newer; set PYTHON=python3.11 (or newer)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# What the lock names, with hashes; PyTorch, whose build depends on the machine (see CONTRIBUTING.md); and ourselves.
$(STAMP): pyproject.toml locks/run.txt locks/torch.txt package-lock.json build_frontend.py | $(BIN)/python
	@echo "Installing Prefloop and what it needs into $(VENV) (a few minutes the first time)"
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement locks/run.txt
	$(BIN)/pip install --quiet --requirement locks/torch.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): $(STAMP) locks/dev.txt
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement locks/dev.txt
	$(BIN)/pip check --quiet
	@touch $@

$(NODE_STAMP): package.json package-lock.json $(DEV_STAMP)
	$(BIN)/npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

run: $(STAMP) ## start the whole service: database, web, worker (PREFLOOP_HOME, PREFLOOP_PORT)
	@exec $(BIN)/prefloop up

# Types and import rules keep one core busy for a minute, and so are checked beside the tests.
test: style test-js ## lint, types, import rules and every test
	@($(TYPES)) & types=$$!; \
	$(PYTEST) --durations 12; tests=$$?; \
	wait $$types || { echo "Types or import rules are wrong: see above, or run make lint." >&2; exit 1; }; exit $$tests

test-web: $(DEV_STAMP) test-js ## tests of the web service, with a real browser
	$(PYTEST) $(addprefix --ignore ,$(TRAINER_TESTS))

test-trainer: $(DEV_STAMP) ## tests of the trainer, of whole rounds and of the benchmarks
	$(PYTEST) $(TRAINER_TESTS)

test-fast: $(DEV_STAMP) test-js ## quick tests that find most mistakes (aim: 90 seconds on 2 cores)
	$(PYTEST) $(FAST_TESTS)

test-js: $(DEV_STAMP) ## tests of our scripts, in Node
	$(BIN)/node --test tests/js/*.test.js

lint: style types ## style, types and import rules only

style: $(DEV_STAMP) lint-js ## style only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP) ## types and import rules only
	$(TYPES)

lint-js: $(NODE_STAMP) ## faults in our scripts
	$(BIN)/node node_modules/@biomejs/biome/bin/biome lint --error-on-warnings

format: $(DEV_STAMP) ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(NODE_STAMP) ## check each commit and each push with git
	$(BIN)/pre-commit install

LOCKED := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-emit-package torch \
	--custom-compile-command "make lock"

lock: $(DEV_STAMP) ## write locks/ from pyproject.toml (LOCK=--upgrade: with the newest versions)
	$(BIN)/$(LOCKED) --group dev --output-file locks/dev.txt $(LOCK)
	$(BIN)/$(LOCKED) --group build --constraint locks/dev.txt --output-file locks/run.txt $(LOCK)

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
	rm -rf $(VENV) $(PEER) node_modules static/vendor .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
