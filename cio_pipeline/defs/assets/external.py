"""The two ends of the lineage, which the pipeline reads from and writes to: nothing materializes them."""

import dagster as dg

from cio_pipeline.defs.asset_keys import DELIVERY, GROUP, OWNERS, TAGS, asset_key
from cio_pipeline.defs.connections import destination_url, page_address, source_url
from cio_pipeline.defs.pages.schemas import POSTHOG_COLUMNS, table_schema

posthog_project = dg.AssetSpec(
    asset_key("posthog_project"),
    description="The PostHog project that POSTHOG_HOST and POSTHOG_PROJECT_ID name, or its batch export.",
    group_name=GROUP,
    kinds={"posthog"},
    owners=OWNERS,
    tags=TAGS,
    metadata={"dagster/column_schema": table_schema(POSTHOG_COLUMNS), **page_address(source_url)},
)

customerio_workspace = dg.AssetSpec(
    asset_key("customerio_workspace"),
    deps=[DELIVERY],
    description="The Customer.io workspace that CUSTOMERIO_SITE_ID belongs to, with its people and their events.",
    group_name=GROUP,
    kinds={"customerio"},
    owners=OWNERS,
    tags=TAGS,
    metadata={
        "dagster/column_schema": table_schema(
            {
                "identifiers": "A person's id or email.",
                "person's attributes": "What is known about them.",
                "person's events": "What they did.",
            }
        ),
        **page_address(destination_url),
    },
)
