# Everything a developer types. `make` alone lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) \
	  | while IFS=$$'\t' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: $(STAMP) ## a scene becomes a video: no account, no Docker, half a minute; ARGS=--film makes a film, ARGS=--keep shows it in a browser
	@exec $(BIN)/python -m vidgen_worker demo $(ARGS)

.PHONY: sandbox
sandbox: $(STAMP) ## a Supabase project on this machine; ARGS="--data DIR" keeps it
	@exec $(BIN)/python -m vidgen_worker sandbox $(ARGS)

.PHONY: test
test: $(STAMP) ## all tests; ARGS="-k drain -n 0" is passed on to pytest
	@# Some 300 processes are started: none should compile what it imports.
	@$(BIN)/python -m compileall -q vidgen_worker tests/support
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

.PHONY: soak
soak: $(STAMP) ## kills, restarts and faults for some 5 minutes; ARGS="--seed 7" repeats one run
	$(BIN)/python -m tests.soak.run $(ARGS)

# What the tests need from npm: the Supabase CLI, and what the examples import or are built by.
NODE_TOOLS := supabase@3.1.0 standardwebhooks@1.1.1 @supabase/supabase-js@2.119.1 ws@8.23.0 \
  typescript@7.0.2 @types/node@20.19.43 @types/ws@8.18.2 vite@8.4.0

.PHONY: tools
tools: .tools/node_modules/.package-lock.json ## the Supabase CLI, supabase-js and tsc, for their tests (npm)

.tools/node_modules/.package-lock.json: Makefile
	@mkdir -p .tools
	@SUPABASE_TELEMETRY_DISABLED=1 npm install --silent --no-audit --no-fund --no-package-lock \
	  --save-exact --prefix .tools $(NODE_TOOLS)
	@touch $@

.PHONY: bench
bench: $(STAMP) ## beside Procrastinate, PgQueuer and Chancy: one table, some 20 minutes
	$(BIN)/python -m bench.run

.PHONY: bench-quick
bench-quick: $(STAMP) ## the same with small sizes, under 3 minutes
	$(BIN)/python -m bench.run --quick

.PHONY: check
check: $(STAMP) ## format, lint, types, layers and migrations, as CI sees them
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory lint
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/squawk migrations/*.sql
	@$(MAKE) --no-print-directory audit

.PHONY: audit
audit: $(STAMP) ## known vulnerabilities of the locked versions, where that can be asked
	@$(BIN)/python .ci/audit.py

.PHONY: lint
lint: $(STAMP) ## ruff alone
	$(BIN)/ruff check .

.PHONY: format
format: $(STAMP) ## rewrite the sources as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: pictures
pictures: $(STAMP) ## the pictures of the README, anew: needs chromium; some two minutes
	@exec $(BIN)/python docs/pictures.py

.PHONY: dist
dist: $(STAMP) ## wheel and source archive in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

.PHONY: lock
lock: ## renew requirements.lock with the newest versions that pyproject.toml admits
	rm -rf build/lock
	$(call make_venv,build/lock)
	build/lock/bin/python -m pip install -q -e '.[sandbox,dashboard,films,dev]'
	{ sed -n '/^#/p' requirements.lock; build/lock/bin/python -m pip freeze --exclude-editable; } \
	  > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf build/lock

.PHONY: venv
venv: $(STAMP) ## the environment in .venv, with the locked versions

.PHONY: clean
clean: ## remove what these commands made
	rm -rf .venv build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache .coverage .coverage.*
	find vidgen_worker tests -name __pycache__ -prune -exec rm -rf {} +

# Debian's python3 has no ensurepip unless python3-venv is installed; its pip can fill a virtual
# environment from outside.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vidgen-worker needs Python 3.11 or newer; '$(PYTHON)' is not. Say which: make PYTHON=python3.12 …" >&2; exit 1; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv --without-pip $(1)
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 \
	  || $(1)/bin/python -m ensurepip >/dev/null 2>&1 \
	  || $(PYTHON) -m pip --python $(1)/bin/python install -q pip \
	  || { echo "There is no pip for '$(PYTHON)'. On Debian: apt-get install python3-venv python3-pip" >&2; exit 1; }
endef

$(STAMP): requirements.lock pyproject.toml
	@echo "Setting up .venv (once; one to three minutes)"
	$(call make_venv,.venv)
	@$(BIN)/python -m pip install -q -r requirements.lock
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@
