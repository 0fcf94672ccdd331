"""Everything Dagster loads."""

import dagster as dg

from cio_pipeline.defs.automation import customerio_daily, customerio_sync
from cio_pipeline.defs.deliver import customerio_delivery, nothing_refused
from cio_pipeline.defs.derive import connector
from cio_pipeline.defs.extract import identities, posthog_events
from cio_pipeline.defs.resources import CustomerIo, PostHog, Store

defs = dg.Definitions(
    assets=[posthog_events, identities, connector, customerio_delivery],
    asset_checks=[nothing_refused],
    jobs=[customerio_sync],
    schedules=[customerio_daily],
    resources={"posthog": PostHog(), "customerio": CustomerIo(), "store": Store()},
    executor=dg.in_process_executor,
)
