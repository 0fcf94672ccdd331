"""PostHog's events of a day, and what they teach about people."""

from collections.abc import Iterator
from itertools import chain, islice

import dagster as dg
import pandas as pd
import pyarrow as pa

from cio_pipeline.days import learn_day, learn_history, learned_under
from cio_pipeline.defs.partitions import a_few_days_a_run, days, window
from cio_pipeline.defs.resources import PostHog, Store
from cio_pipeline.posthog.progress import told
from cio_pipeline.posthog.source import EVENT_SCHEMA, Window, in_order
from cio_pipeline.storage.identities import HISTORY
from cio_pipeline.storage.tables import shards_for

GROUP = "customerio_sync"


@dg.asset(partitions_def=days, backfill_policy=a_few_days_a_run, group_name=GROUP, kinds={"posthog", "parquet"})
def posthog_events(context: dg.AssetExecutionContext, posthog: PostHog, store: Store) -> None:
    """The day's events as PostHog stores them, each uuid once; only those that the settings need."""
    for day in context.partition_keys:
        found = posthog.source.events(*window(day), context.log.info)
        read = _keep(store, "posthog_events", day, found, told(day, found, context.log.info))
        version = store.tables.version("posthog_events", day)
        counts = {"dagster/row_count": version.rows, "duplicates": read - version.rows, "shards": version.shards}
        context.add_asset_metadata({**counts, **found.facts}, partition_key=day)


def _keep(store: Store, table: str, partition: str, found: Window, frames: Iterator[pd.DataFrame]) -> int:
    """Writes the events, each once, in shards of a bounded size; gives how many came."""
    first, read = list(islice(frames, 1)), 0
    row_bytes = sum(pa.Table.from_pandas(frame, EVENT_SCHEMA).nbytes // max(1, len(frame)) for frame in first)
    with store.tables.replace(table, partition, EVENT_SCHEMA, shards_for(found.expected, row_bytes)) as writer:
        for frame in chain(first, frames):
            writer.add(frame, by="distinct_id")
            read += len(frame)
        writer.finish_each(in_order)
    return read


class HistoryConfig(dg.Config):
    """How to take the history."""

    again: bool = False
    """Read it again, though it is known."""


@dg.asset(group_name=GROUP, kinds={"posthog", "sql"})
def identity_history(
    context: dg.AssetExecutionContext, config: HistoryConfig, posthog: PostHog, store: Store
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """What all `$identify` and `$set` events before the first partition teach (R18); read once, then kept."""
    start = window(days.get_first_partition_key() or str(days.start.date()))[0]
    setting = f"{learned_under(store.attributes_from)} before {start:%Y-%m-%d}"
    if not config.again and not store.identities.unlearned([HISTORY], setting):
        return dg.MaterializeResult(metadata={"known already": True})
    found = posthog.source.history(start, context.log.info)
    _keep(store, "identity_history", HISTORY, found, told("History", found, context.log.info))
    counts = learn_history(setting, store.tables, store.identities)
    return dg.MaterializeResult(metadata={"events": store.tables.version("identity_history", HISTORY).rows, **counts})


@dg.asset(
    partitions_def=days,
    backfill_policy=a_few_days_a_run,
    group_name=GROUP,
    kinds={"pandas", "sql"},
    deps=[posthog_events, identity_history],
)
def identities(context: dg.AssetExecutionContext, store: Store) -> None:
    """What the day teaches about each distinct_id: whether it was identified, its email, its anonymous ids (R1, R16)."""
    for day in context.partition_keys:
        counts = learn_day(day, learned_under(store.attributes_from), store.tables, store.identities)
        context.add_asset_metadata({"dagster/row_count": counts["people"], **counts}, partition_key=day)
