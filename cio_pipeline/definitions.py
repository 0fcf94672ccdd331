"""Everything that Dagster loads. A day passes through the assets from `posthog_project` to `customerio_workspace` in the order
in which they are listed below; `dry_run` and `explained_person` are reports.

What a request to Customer.io holds: upserts of customers, then events. `customerio/client.py` posts it to /api/v2/batch.

    {"batch":[
    {"type":"person","action":"identify","identifiers":{"id":"u1"},"timestamp":1772445600,"attributes":{"plan":"pro"}},
    {"type":"person","action":"event","identifiers":{"id":"u1"},"id":"01KJ…","name":"paid","timestamp":1772445600,"attributes":{}}
    ]}

- Not sent are two names of events (R4), those that the settings filter, by name (R3) or while their person is anonymous (R5;
  R16: some are sent later, as somebody's), those that Customer.io would reject or misread (R14: refused), and suppressed people
  (R21). In an hourly run, some wait for the end of the day (R22). Each event has its own time, in whole seconds. The action is
  `page` for `$pageview`, `screen` for `$screen`, otherwise `event`.
- identifiers: with CIO_IDENTIFY_BY_EMAIL, the `email` that was last set for the distinct_id by then, if any; otherwise the
  distinct_id, as `email` if it is one, else as `id` (R6). Emails that identify are in lower case.
- An event's id is made of its day, name, distinct_id and uuid, so that Customer.io ignores a copy (R12). Its attributes are its
  properties without `$set`, `$set_once`, `$unset` and, by default, what would redirect mail (`recipient`, `from_address`,
  `reply_to`; R13).
- An upsert's attributes are the last value by time of each name in the `$set` of the day's sent events or, where PostHog has
  dropped that, in the stored person properties (CIO_ATTRIBUTES_FROM, R20); null for the names in `$unset` (R11). To these come
  `identifier` (the last distinct_id) and `email` (the one that identifies, else the last one known), which replaces a given one
  (R7). Left out are names with a special meaning (R8), a `created_at` that is no time (R9), an `email` that is not valid (R2),
  long names and values, and what is beyond 300 (R10: long text is cut); of what is about consent, all that would not reduce
  what the person receives (R19). The timestamp is that of the newest. Several upserts share what is too large for one.

`rules/classify.py` decides about events, and `rules/operations.py` makes the items: the column `operation` of the tables
`customers` and `events`. A delivery sends the events that were not delivered, and each upsert that says something new, but
nothing that was refused and has not changed. It alters only upserts: `customerio/plan.py` begins with how. An event that is too
large for a batch is posted alone, to /api/v1/customers/<identifier>/events, as {"id", "name", "timestamp", "type", "data"}.

docs/rules.md has all rules, R1 to R22, and the words of the code. `rules/__init__.py` names the modules of the rules in the
order in which a day passes through them, `customerio/__init__.py` those of a delivery.
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
