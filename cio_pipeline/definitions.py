"""Everything that Dagster loads. A day passes through the assets from `posthog_project` to `customerio_workspace` in the order
in which they are listed below; `dry_run` and `explained_person` are reports.

What a request to Customer.io holds: `{"batch": [...]}`, posted to /api/v2/batch by `customerio/client.py`. The items are the
column `operation` of the tables `customers` (upserts) and `events`; `rules/items.py` shows one of each. An upsert is sent
without attributes of which Customer.io has newer values (R17), and never with an earlier time than one before it. An event that
is too large for a batch is posted alone, to /api/v1/customers/<identifier>/events.

How it comes about: `rules/__init__.py` names the modules of the rules in the order in which a day passes through them, and
`customerio/__init__.py` those of a delivery. R1 to R22 are the rules of docs/rules.md, which also explains the words of the
code.
"""

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
from cio_pipeline.defs.jobs.checks import CHECKS_WITHOUT_A_RUN, customerio_checks, customerio_checks_daily
from cio_pipeline.defs.jobs.dry_run import customerio_dry_run, dry_run
from cio_pipeline.defs.jobs.explain import explain_person, explained_person
from cio_pipeline.defs.jobs.hourly import customerio_hourly, customerio_hourly_schedule
from cio_pipeline.defs.jobs.redeliver import redeliver_refused
from cio_pipeline.defs.jobs.sync import customerio_daily, customerio_sync
from cio_pipeline.defs.partitions import DAYS_SETTINGS
from cio_pipeline.defs.resources import CustomerIoResource, PostHogResource, StoreResource

# Dagster copies what this logger logs to the runs' logs (`python_logs` in dagster.yaml), so it must log from INFO on.
logging.getLogger("cio_pipeline").setLevel(logging.INFO)

if DAYS_SETTINGS.json_logs:
    json_logs.begin()

defs = dg.Definitions(
    assets=[
        posthog_project,
        posthog_events,
        identity_history,
        identities,
        customers_events_rejects,
        customerio_delivery,
        customerio_workspace,
        dry_run,
        explained_person,
    ],
    # The other checks are evaluated by the runs of the assets that declare them (`check_specs`): defs/checks/extract.py and
    # derive.py. One of them, every_event_accounted_for, blocks the delivery.
    asset_checks=CHECKS_WITHOUT_A_RUN,
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
    resources={"posthog": PostHogResource(), "customerio": CustomerIoResource(), "store": StoreResource()},
    executor=dg.in_process_executor,
)
