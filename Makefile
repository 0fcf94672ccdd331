PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready

.PHONY: help demo dev run dry-run refusals redeliver ui test test-clickhouse lint lock

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: $(READY) ## three days through Dagster, from a local PostHog to a local Customer.io
	@$(PY) -E -m cio_pipeline demo

dev: $(READY) ## the Dagster UI on the same sandbox, until Ctrl-C
	@$(PY) -E -m cio_pipeline dev

DAYS = $(if $(PARTITION),--partition "$(PARTITION)") $(if $(FROM),--from "$(FROM)") $(if $(TO),--to "$(TO)")
CHOICES = $(if $(LIMIT),--limit "$(LIMIT)") $(if $(HOLD_RECENT_EVENTS),--hold-recent-events "$(HOLD_RECENT_EVENTS)") $(if $(RESEND),--resend)

run: $(READY) ## days from PostHog to Customer.io: PARTITION=2026-03-02, or FROM=2026-03-02 TO=2026-03-04
	@$(PY) -m cio_pipeline $(if $(DRY_RUN),dry-run,run) $(DAYS) $(CHOICES)

dry-run: $(READY) ## the same, but nothing is sent: what would be is printed
	@$(PY) -m cio_pipeline dry-run $(DAYS) $(CHOICES)

refusals: $(READY) ## what Customer.io has refused; PARTITION=, REASON= only some of it
	@$(PY) -m cio_pipeline refusals $(if $(PARTITION),--partition "$(PARTITION)") $(if $(REASON),--reason "$(REASON)")

redeliver: $(READY) ## send that again; PARTITION=, REASON= only some of it
	@$(PY) -m cio_pipeline redeliver $(if $(PARTITION),--partition "$(PARTITION)") $(if $(REASON),--reason "$(REASON)")

ui: $(READY) ## the Dagster UI and daemon on what the environment and .env name, until Ctrl-C
	@$(PY) -m cio_pipeline ui

test: lint ## all tests
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-clickhouse: $(READY) ## the queries on a real ClickHouse, which it installs first (183 MB)
	@$(PY) -m pip install --quiet --disable-pip-version-check "chdb>=4.1,<5"
	@$(PY) -m pytest -m clickhouse -s

lint: $(READY) ## format, lint and types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

lock: ## requirements.lock anew, with uv
	uv pip compile --universal --generate-hashes --no-header --no-strip-extras --python-version 3.10 --extra dev pyproject.toml -o requirements.lock

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo "Python 3.10 to 3.13 is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing what requirements.lock names into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $(READY)
