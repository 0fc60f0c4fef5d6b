# Needs Python >= 3.11, git and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BENCH_INSTALLED := .venv/.bench
AUDIT_INSTALLED := .venv/.audit
# What to measure on: make bench DATA=folder WEIGHTS=file
MEASURED = $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS))

.PHONY: help demo test lint format docs bench profile torture audit lock clean

help: ## List the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "chestx needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs]'
	touch $@

demo: $(INSTALLED) ## Run the whole study on synthetic images, into demo/.
	$(BIN)/chestx demo --out demo

test: $(INSTALLED) ## Run the tests.
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(INSTALLED) ## Check format, rules and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Not --quiet: it would keep broken links from failing the build.
docs: $(INSTALLED) ## Generate the table of commands, docs/cli.md and the picture of the rooms, then build the site; a broken link fails.
	$(BIN)/python -m tools.command_table
	$(BIN)/python docs/make_cli_reference.py
	$(BIN)/python -m tools.rooms
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	touch $@

bench: $(BENCH_INSTALLED) ## Measure every figure of docs/results.md (hours; DATA=folder WEIGHTS=file).
	$(BIN)/python -m tools.benchmarks.performance $(MEASURED)
	$(BIN)/python -m tools.benchmarks.split_scale

profile: $(BENCH_INSTALLED) ## Measure where each command's time goes, for docs/performance.md.
	$(BIN)/python -m tools.benchmarks.profile $(MEASURED)

torture: $(INSTALLED) ## Measure every figure of docs/reliability.md (about an hour).
	$(BIN)/python -m tools.reliability

$(AUDIT_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,audit]'
	touch $@

audit: $(AUDIT_INSTALLED) ## Look up known weaknesses of the locked requirements (network), and check their licences.
	$(BIN)/python -m tools.reliability --only audit

lock: $(AUDIT_INSTALLED) ## Lock the requirements anew, with hashes and without a registry's name (network, minutes).
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file requirements.lock pyproject.toml
	sed -i '1i # Everything that chestx needs on Linux with x86-64 and Python 3.11; made by `make lock`.' requirements.lock

clean: ## Remove the environment and the demonstration.
	rm -rf .venv demo site
