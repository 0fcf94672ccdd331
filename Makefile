PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready

.PHONY: help demo dev run ui test test-clickhouse lint lock

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: $(READY) ## three days through Dagster, from a local PostHog to a local Customer.io
	@$(PY) -E -m cio_pipeline demo

dev: $(READY) ## the Dagster UI on the same sandbox, until Ctrl-C
	@$(PY) -E -m cio_pipeline dev

run: $(READY) ## PARTITION=2026-03-02, or FROM=2026-03-02 TO=2026-03-04: days headless, against what .env names; DRY_RUN=1 looks only
	@$(PY) -m cio_pipeline run $(if $(PARTITION),--partition "$(PARTITION)") $(if $(FROM),--from "$(FROM)") $(if $(TO),--to "$(TO)") \
		$(if $(DRY_RUN),--dry-run) $(if $(RESEND),--resend) $(if $(LIMIT),--limit "$(LIMIT)") $(if $(HOLD_RECENT_EVENTS),--hold-recent-events "$(HOLD_RECENT_EVENTS)")

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
