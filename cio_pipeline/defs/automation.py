"""The job and its schedule."""

import dagster as dg

from cio_pipeline.defs.deliver import customerio_delivery
from cio_pipeline.defs.derive import connector
from cio_pipeline.defs.extract import identities, identity_history, posthog_events

customerio_sync = dg.define_asset_job(
    "customerio_sync",
    dg.AssetSelection.assets(posthog_events, identities, identity_history, connector, customerio_delivery),
    description="Days of PostHog events, from extraction to Customer.io.",
)

customerio_daily = dg.build_schedule_from_partitioned_job(
    customerio_sync,
    name="customerio_daily",
    description="Yesterday's events, at 03:15 UTC.",
    hour_of_day=3,
    minute_of_hour=15,
)
