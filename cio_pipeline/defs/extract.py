"""PostHog's events of a day, and what they teach about people."""

import dagster as dg

from cio_pipeline.connector.facts import learn
from cio_pipeline.defs.partitions import a_few_days_a_run, days, window
from cio_pipeline.defs.resources import PostHog, Store
from cio_pipeline.posthog.source import EVENT_SCHEMA, in_order
from cio_pipeline.storage.tables import shards_for


@dg.asset(partitions_def=days, backfill_policy=a_few_days_a_run, group_name="customerio_sync", kinds={"posthog", "parquet"})
def posthog_events(context: dg.AssetExecutionContext, posthog: PostHog, store: Store) -> None:
    """The day's events as PostHog stores them, each uuid once; only those that the settings need."""
    for day in context.partition_keys:
        start, end = window(day)
        read = 0
        found = posthog.source.events(start, end, context.log.info)
        with store.tables.replace("posthog_events", day, EVENT_SCHEMA, shards_for(found.expected)) as table:
            for frame in found.frames:
                table.add(frame, by="distinct_id")
                read += len(frame)
            table.finish_each(in_order)
        version = store.tables.version("posthog_events", day)
        context.add_asset_metadata(
            {"dagster/row_count": version.rows, "duplicates": read - version.rows, "shards": version.shards},
            partition_key=day,
        )


@dg.asset(
    partitions_def=days,
    backfill_policy=a_few_days_a_run,
    group_name="customerio_sync",
    kinds={"pandas", "sql"},
    deps=[posthog_events],
)
def identities(context: dg.AssetExecutionContext, store: Store) -> None:
    """What the day teaches about each distinct_id: whether it was identified, and its email (R1)."""
    for day in context.partition_keys:
        events = store.tables.read("posthog_events", day)
        learned = [learn(shard, store.options) for shard in events]
        store.identities.replace(day, learned)
        context.add_asset_metadata(
            {
                "dagster/row_count": sum(len(frame) for frame in learned),
                "identified": sum(int(frame["identified"].sum()) for frame in learned),
                "emails": sum(int(frame["email"].notna().sum()) for frame in learned),
            },
            partition_key=day,
        )
