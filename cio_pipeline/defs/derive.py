"""What will be sent, exactly, and what will not and why."""

import tempfile
from collections import Counter
from collections.abc import Iterator

import dagster as dg
import pandas as pd
import pyarrow as pa

from cio_pipeline.connector.operations import build
from cio_pipeline.connector.outcomes import REFUSED, SENT, decide
from cio_pipeline.defs.extract import identities, posthog_events
from cio_pipeline.defs.partitions import a_few_days_a_run, days, days_before
from cio_pipeline.defs.resources import Store
from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.storage.tables import Tables

TIME = pa.timestamp("us", "UTC")
TO_SEND = pa.schema([*EVENT_SCHEMA, ("key", pa.string()), ("email", pa.string())])
CUSTOMERS = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.int32()),
        ("attributes", pa.int32()),
        ("timestamp", TIME),
        ("times", pa.string()),
        ("operation", pa.string()),
    ]
)
EVENTS = pa.schema(
    [
        *((name, pa.string()) for name in ("uuid", "ulid", "key", "name", "type")),
        ("timestamp", TIME),
        ("call", pa.string()),
        ("operation", pa.string()),
    ]
)
REJECTS = pa.schema(
    [
        *((name, pa.string()) for name in ("uuid", "distinct_id", "event")),
        ("timestamp", TIME),
        *((name, pa.string()) for name in ("what", "name", "reason")),
    ]
)


FROM_THE_DAY = (posthog_events, identities)


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "customers",
            deps=FROM_THE_DAY,
            description="One row per customer to upsert, and the operation as it will be sent.",
        ),
        dg.AssetSpec(
            "events", deps=FROM_THE_DAY, description="One row per event to send, and the operation as it will be sent."
        ),
        dg.AssetSpec("rejects", deps=FROM_THE_DAY, description="One row per refused event, attribute or property, and why."),
    ],
    partitions_def=days,
    backfill_policy=a_few_days_a_run,
    group_name="customerio_sync",
    check_specs=[
        dg.AssetCheckSpec("every_event_accounted_for", asset="events", blocking=True),
        dg.AssetCheckSpec("earlier_days_learned", asset="customers"),
    ],
)
def connector(context: dg.AssetExecutionContext, store: Store) -> Iterator["dg.MaterializeResult[None] | dg.AssetCheckResult"]:
    """Applies the connector's rules to the day."""
    accounts = {day: derive_day(context, store, day) for day in context.partition_keys}
    yield from (dg.MaterializeResult(asset_key=name) for name in ("customers", "events", "rejects"))
    yield _every_event_accounted_for(accounts, store)
    yield _earlier_days_learned(store, context.partition_keys)


def derive_day(context: dg.AssetExecutionContext, store: Store, day: str) -> Counter[str]:
    """Writes the day's three tables; gives the number of events by outcome."""
    account: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    shards = store.tables.version("posthog_events", day).shards
    with (
        tempfile.TemporaryDirectory(prefix="cio_pipeline_") as folder,
        store.tables.replace("customers", day, CUSTOMERS, shards) as customers,
        store.tables.replace("events", day, EVENTS, shards) as events,
        store.tables.replace("rejects", day, REJECTS, shards) as rejects,
    ):
        sent = Tables(folder)
        with sent.replace("sent", day, TO_SEND, shards) as to_send:
            for decided in _decided(store, day):
                account.update(decided["outcome"])
                rejects.add(_refused(decided), by="uuid")
                to_send.add(decided[decided["outcome"] == SENT], by="key")
            to_send.finish_each(lambda shard: shard.sort_values(["timestamp", "uuid"], ignore_index=True))
        for shard in sent.read("sent", day):
            tables = build(shard, store.options)
            customers.add(tables.customers, by="key")
            events.add(tables.events, by="key")
            rejects.add(tables.rejects, by="uuid")
            refused = REFUSED + tables.rejects.loc[tables.rejects["what"] == "event", "reason"].astype(object)
            account.subtract({SENT: len(refused)})
            account.update(refused)
            left_out.update(tables.rejects.loc[tables.rejects["what"] != "event", "reason"])
    _tell(context, store, day, account, left_out)
    return account


def _decided(store: Store, day: str) -> Iterator[pd.DataFrame]:
    """The day's events with their outcomes, shard by shard."""
    for shard in store.tables.read("posthog_events", day):
        known = store.identities.before(day, shard["distinct_id"].unique().tolist())
        yield decide(shard, known, store.options)


def _refused(decided: pd.DataFrame) -> pd.DataFrame:
    refused = decided[decided["outcome"].str.startswith(REFUSED)]
    reasons = refused["outcome"].str.removeprefix(REFUSED)
    return refused.assign(what="event", name=refused["event"], reason=reasons)[REJECTS.names]


def _tell(context: dg.AssetExecutionContext, store: Store, day: str, account: Counter[str], left_out: Counter[str]) -> None:
    reasons = {name: count for name, count in account.items() if name != SENT and count}
    facts: dict[str, dict[str, dg.MetadataValue | int]] = {
        "customers": {},
        "events": {"extracted": account.total(), "outcomes": _counts_table({SENT: account[SENT], **reasons})},
        "rejects": {"left out of what was sent": _counts_table(left_out)},
    }
    for name, metadata in facts.items():
        rows = store.tables.version(name, day).rows
        context.add_asset_metadata({"dagster/row_count": rows, **metadata}, asset_key=name, partition_key=day)


def _counts_table(counts: dict[str, int]) -> dg.MetadataValue:
    lines = [f"| {reason} | {count:,} |" for reason, count in sorted(counts.items(), key=lambda item: -item[1])]
    return dg.MetadataValue.md("\n".join(["| reason | count |", "| --- | ---: |", *lines]))


def _every_event_accounted_for(accounts: dict[str, Counter[str]], store: Store) -> dg.AssetCheckResult:
    """R15: extracted = sent + filtered + refused, and what is sent is what stands in the table."""
    wrong = [
        day
        for day, account in accounts.items()
        if store.tables.version("posthog_events", day).rows != account.total()
        or store.tables.version("events", day).rows != account[SENT]
    ]
    return dg.AssetCheckResult(
        asset_key="events",
        check_name="every_event_accounted_for",
        passed=not wrong,
        metadata={"days that are off": wrong},
    )


def _earlier_days_learned(store: Store, keys: list[str]) -> dg.AssetCheckResult:
    """R1 needs the facts of all earlier days: those that were never extracted are named."""
    missing = store.identities.missing(days_before(max(keys)))
    return dg.AssetCheckResult(
        asset_key="customers",
        check_name="earlier_days_learned",
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        description="Days before these whose identities were never learned: derive again after you materialized them.",
        metadata={
            "days missing": len(missing),
            "first": missing[0] if missing else "",
            "last": missing[-1] if missing else "",
        },
    )
