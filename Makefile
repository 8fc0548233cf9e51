# Two commands: `make demo` and `make test`. Each sets up what it needs first; plain pip is enough, uv is used if present.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
STAMP := $(VENV)/.installed-$(shell cksum $(LOCK) pyproject.toml | cksum | cut -d' ' -f1)
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed-$(shell cksum requirements/peers.txt | cut -d' ' -f1)
export SDL_VIDEODRIVER ?= dummy
export PYTHONUNBUFFERED := 1

.PHONY: help demo experts test test-catalogue test-catalogue-sample test-slow test-peers test-cluster peers lint \
  benchmarks benchmarks-peers clean setup

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 23

setup: $(STAMP)  ## .venv with pinned versions

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3-venv is missing: sudo apt-get install python3-venv"; exit 2; }; }
	@echo "installing pinned packages into $(VENV) (once, a few minutes)"
	@if command -v uv >/dev/null; then VIRTUAL_ENV=$(VENV) uv pip install -q -c $(LOCK) -e '.[dev]'; \
	  else $(BIN)/python -m pip install -q --disable-pip-version-check -c $(LOCK) -e '.[dev]'; fi
	@rm -f $(VENV)/.installed-* && touch $@

demo: $(STAMP)  ## specialists, demonstrations, shards, one generalist, its scores: under runs/demo, in 20 minutes
	@$(BIN)/python examples/demo.py $(DEMO_FLAGS)

# Interrupted, it goes on when run again. EXPERTS_FLAGS="--tasks sokoban" for a part.
experts: $(STAMP)  ## demonstrations of every expert from nothing, and their scores: under runs/experts, in hours
	@OMP_NUM_THREADS=1 $(BIN)/python examples/experts.py $(EXPERTS_FLAGS)

test: $(STAMP)  ## the checks and the fast tests, in five minutes
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-slow: $(STAMP)  ## the slow tests
	@$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# Every family in the same environment; what passed is remembered, so it goes on where it stopped.
CATALOGUE_STAMP := $(STAMP)-catalogue
CATALOGUE_PASSED ?= runs/catalogue-passed.txt
$(CATALOGUE_STAMP): $(STAMP)
	@echo "installing every family of environments into $(VENV) (once, a few minutes, 3 GB)"
	@if command -v uv >/dev/null; then VIRTUAL_ENV=$(VENV) uv pip install -q -c $(LOCK) -e '.[dev,catalogue]'; \
	  else $(BIN)/python -m pip install -q --disable-pip-version-check -c $(LOCK) -e '.[dev,catalogue]'; fi
	@touch $@

test-catalogue-sample: $(CATALOGUE_STAMP)  ## some tasks of the catalogue, every day others, one of each family
	@$(BIN)/python -m pytest -m catalogue tests/collectors $(PYTEST_FLAGS)

test-catalogue: $(CATALOGUE_STAMP)  ## every task of it, resumable; CATALOGUE_TASKS='atari sokoban' CATALOGUE_SHARD=1/4
	@mkdir -p $(dir $(CATALOGUE_PASSED))
	@CATALOGUE=$(CATALOGUE_PASSED) $(BIN)/python -m pytest -m catalogue tests/collectors/test_catalogue.py $(PYTEST_FLAGS)

$(PEERS_STAMP): requirements/peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(PEERS)/bin/python && $(PEERS)/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf $(PEERS); $(PYTHON) -m venv $(PEERS); }
	@echo "installing the peers' packages into $(PEERS) (once, several minutes, 3 GB)"
	@$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -r requirements/peers.txt
	@rm -f $(PEERS)/.installed-* && touch $@

# LeRobot wants Python 3.12 and its own PyTorch: an environment of its own.
LEROBOT := .venv-peers-lerobot
LEROBOT_PYTHON ?= $(shell for python in $(PYTHON) python3.12 python3.13 $(HOME)/.pyenv/versions/3.12*/bin/python; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$python && break; done)
LEROBOT_STAMP := $(LEROBOT)/.installed-$(shell cksum requirements/peers-lerobot.txt | cut -d' ' -f1)
$(LEROBOT_STAMP): requirements/peers-lerobot.txt
	@test -n "$(LEROBOT_PYTHON)" \
	  || { echo "LeRobot needs Python 3.12 or newer; try: make LEROBOT_PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(LEROBOT)/bin/python && $(LEROBOT)/bin/python -m pip --version >/dev/null 2>&1 \
	  || { rm -rf $(LEROBOT); $(LEROBOT_PYTHON) -m venv $(LEROBOT); }
	@echo "installing LeRobot into $(LEROBOT) (once, several minutes, 6 GB)"
	@$(LEROBOT)/bin/python -m pip install -q --disable-pip-version-check -r requirements/peers-lerobot.txt
	@rm -f $(LEROBOT)/.installed-* && touch $@

# Other stores of data, which benchmarks/store_race.py measures beside this one.
STORAGE := .venv-peers-storage
STORAGE_STAMP := $(STORAGE)/.installed-$(shell cksum requirements/peers-storage.txt | cut -d' ' -f1)
$(STORAGE_STAMP): requirements/peers-storage.txt
	@test -x $(STORAGE)/bin/python && $(STORAGE)/bin/python -m pip --version >/dev/null 2>&1 \
	  || { rm -rf $(STORAGE); $(PYTHON) -m venv $(STORAGE); }
	@echo "installing other stores into $(STORAGE) (once, several minutes, 4 GB)"
	@$(STORAGE)/bin/python -m pip install -q --disable-pip-version-check -r requirements/peers-storage.txt
	@rm -f $(STORAGE)/.installed-* && touch $@

test-peers: $(PEERS_STAMP) $(LEROBOT_STAMP)  ## the peers' own packages read our exports, and we read what they write
	@$(PEERS)/bin/python -m pytest -m peers $(wildcard tests/*/test_*_peers.py) $(PYTEST_FLAGS)
	@$(LEROBOT)/bin/python -m pytest -m peers_lerobot $(wildcard tests/*/test_lerobot_peers.py) $(PYTEST_FLAGS)

test-cluster: $(STAMP)  ## the Beam job on a real Flink cluster, Prism and an S3 server, all started and stopped here
	@server=$$($(BIN)/python tests/cluster/parts.py) && \
	  VERSITYGW=$$server $(BIN)/python -m pytest -m cluster tests/cluster tests/episode_store/test_remote_s3.py $(PYTEST_FLAGS)

lint: $(STAMP)  ## ruff, mypy, the layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache >/tmp/lint-imports.$$$$ || { cat /tmp/lint-imports.$$$$; exit 1; }; rm -f /tmp/lint-imports.$$$$

benchmarks: $(STAMP)  ## measures, appended to benchmarks/results.jsonl
	@$(BIN)/python -m benchmarks

# MDS, litdata, Grain and HF datasets want older versions than ours: an environment of their own.
READERS := .venv-peers-readers
READERS_STAMP := $(READERS)/.installed-$(shell cksum requirements/peers-readers.txt | cut -d' ' -f1)
$(READERS_STAMP): requirements/peers-readers.txt
	@test -x $(READERS)/bin/python && $(READERS)/bin/python -m pip --version >/dev/null 2>&1 \
	  || { rm -rf $(READERS); $(PYTHON) -m venv $(READERS); }
	@echo "installing the peers' readers into $(READERS) (once, several minutes, 3 GB)"
	@$(READERS)/bin/python -m pip install -q --disable-pip-version-check -r requirements/peers-readers.txt
	@rm -f $(READERS)/.installed-* && touch $@

peers: $(PEERS_STAMP) $(LEROBOT_STAMP) $(STORAGE_STAMP) $(READERS_STAMP)  ## the peers' packages, so that `make benchmarks` measures them too

benchmarks-peers: $(STAMP) $(READERS_STAMP)  ## reading shards beside litdata, MDS, Grain and HF datasets
	@$(BIN)/python -m benchmarks shards

clean:  ## removes the demo's results, not .venv
	rm -rf runs/demo
