# Everything a person or a machine does with this tree. `make` alone lists the targets.
# .venv is made by .ci/setup; a target that needs it depends on `setup`, which costs nothing when it is current.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help

BIN := .venv/bin
# More options for pytest, for example: make test PYTEST_ARGS='-k leases -x'
PYTEST_ARGS ?=
# How long etcd is maltreated.
MINUTES ?= 5
# How many seeds a soak plays from which on (0: until interrupted); how often chaos strikes, and by which fault alone.
SEEDS ?= 0
SEED0 ?= 0
TIMES ?= 10
FAULT ?=
COMPUTING := tests/architecture tests/property tests/simulation tests/unit

.PHONY: help setup test check format protos demo demo-verify bench gpu-check profile soak chaos etcd-soak leader-soak mutants clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv and install everything into it (a no-op when it is current)
	@.ci/setup

check: setup  ## ruff, mypy --strict and the import contracts
	@echo "check: ruff"
	@$(BIN)/ruff check --quiet --output-format=concise .
	@echo "check: mypy"
	@$(BIN)/mypy --no-error-summary
	@echo "check: import contracts"
	@$(BIN)/lint-imports --verbose >.venv/import-contracts.log 2>&1 || { cat .venv/import-contracts.log; exit 1; }

# What starts servers, Ray and agents runs one after the other and mostly waits for them; what only computes takes the time that this
# leaves, on several cores, politely, so that nothing served is late for it. 5: no test was asked for.
test: check  ## check, then the whole test suite
	@echo "test: pytest, what serves; meanwhile what computes, shown when it is over"
	@nice -n 19 $(BIN)/python -m pytest -n logical --maxprocesses=4 --dist worksteal -o timeout=900 $(PYTEST_ARGS) $(COMPUTING) \
	  >.venv/computing.log 2>&1 & computing=$$!; \
	trap 'kill $$computing 2>/dev/null; wait $$computing; exit 130' INT TERM; \
	served=0; $(BIN)/python -m pytest $(PYTEST_ARGS) tests/integration || served=$$?; \
	computed=0; wait $$computing || computed=$$?; \
	echo "test: pytest, what computes"; cat .venv/computing.log; \
	for code in $$served $$computed; do test $$code -eq 0 -o $$code -eq 5 || exit $$code; done

format: setup  ## rewrite the sources in the project's layout
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

protos: setup  ## generate the packages of messages again from protos/
	@$(BIN)/python protos/generate.py

demo: setup  ## two real sites and 36 twins on this machine, pictures in out/
	@$(BIN)/atoll demo

demo-verify: setup  ## make the demo's pictures again without Atoll and compare their pixels
	@$(BIN)/atoll demo --verify

bench: setup  ## print the figures of this machine
	@$(BIN)/python -m tests.bench

gpu-check: setup  ## run Atoll on this machine's GPU, and time it against what is predicted (skipped where there is none)
	@$(BIN)/python -m tests.gpu

profile: setup  ## print where the time of a placing decision goes
	@$(BIN)/python -m tests.bench.profile

soak: setup  ## simulate seed after seed until interrupted (SEEDS=10000 SEED0=0)
	@$(BIN)/python -m sims.soak --seeds $(SEEDS) --seed0 $(SEED0)

chaos: setup  ## kill and freeze real processes under load, and write docs/reliability.md (TIMES=10 FAULT=orchestrator-killed)
	@$(BIN)/python -m tests.chaos --times $(TIMES) $(if $(FAULT),--fault $(FAULT),--write)

etcd-soak: setup  ## kill and freeze three members of etcd for five minutes under the store (MINUTES=5)
	@$(BIN)/python -m tests.soak.etcd --minutes $(MINUTES)

leader-soak: setup  ## kill the leader of two orchestrators twelve times under 200 submits a second
	@$(BIN)/python -m tests.soak.leaders

mutants: setup  ## plant known bugs in a copy and see the simulation catch each
	@$(BIN)/python tests/mutants/hunt.py

clean:  ## remove what the tools leave (.venv and out/ stay)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
