"""Everything Dagster loads."""

import logging

import dagster as dg

from cio_pipeline.defs import json_logs
from cio_pipeline.defs.alerts.sensor import customerio_alerts
from cio_pipeline.defs.assets.deliver import customerio_delivery
from cio_pipeline.defs.assets.derive import customers_events_rejects
from cio_pipeline.defs.assets.external import customerio_workspace, posthog_project
from cio_pipeline.defs.assets.extract import identities, identity_history, posthog_events
from cio_pipeline.defs.dead_runs import customerio_dead_runs
from cio_pipeline.defs.jobs.backfill import customerio_backfill
from cio_pipeline.defs.jobs.checks import CHECKS, customerio_checks, customerio_checks_daily
from cio_pipeline.defs.jobs.dry_run import customerio_dry_run, dry_run
from cio_pipeline.defs.jobs.explain import explain_person, explained_person
from cio_pipeline.defs.jobs.hourly import customerio_hourly, customerio_hourly_schedule
from cio_pipeline.defs.jobs.redeliver import redeliver_refused
from cio_pipeline.defs.jobs.sync import customerio_daily, customerio_sync
from cio_pipeline.defs.partitions import SETTINGS
from cio_pipeline.defs.resources import CustomerIo, PostHog, Store

# Dagster copies what this logger logs to the runs' logs (`python_logs` in dagster.yaml), so it must log from INFO on.
logging.getLogger("cio_pipeline").setLevel(logging.INFO)

if SETTINGS.json_logs:
    json_logs.begin()

defs = dg.Definitions(
    assets=[
        posthog_project,
        posthog_events,
        identities,
        identity_history,
        customers_events_rejects,
        customerio_delivery,
        customerio_workspace,
        dry_run,
        explained_person,
    ],
    asset_checks=CHECKS,
    jobs=[
        customerio_sync,
        customerio_hourly,
        customerio_backfill,
        customerio_checks,
        customerio_dry_run,
        explain_person,
        redeliver_refused,
    ],
    schedules=[customerio_daily, customerio_hourly_schedule, customerio_checks_daily],
    sensors=[customerio_alerts, customerio_dead_runs],
    resources={"posthog": PostHog(), "customerio": CustomerIo(), "store": Store()},
    executor=dg.in_process_executor,
)
