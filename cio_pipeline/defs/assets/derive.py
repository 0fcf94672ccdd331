"""The assets `customers`, `events` and `rejects`: the JSON of the requests' items, and what is not sent and why."""

import logging
from collections import Counter
from collections.abc import Iterator, Set

import dagster as dg

from cio_pipeline.defs.asset_keys import GROUP, OWNERS, TAGS, asset_key
from cio_pipeline.defs.assets.extract import identities, posthog_events
from cio_pipeline.defs.checks.derive import CHECKS_OF_THE_RUN, every_event_accounted_for, few_refused_by_the_rules
from cio_pipeline.defs.connections import folder_uri
from cio_pipeline.defs.failures import with_readable_failures
from cio_pipeline.defs.pages.previews import first_rows
from cio_pipeline.defs.pages.schemas import SCHEMAS, lineage
from cio_pipeline.defs.pages.tables import Row, table
from cio_pipeline.defs.partitions import backfill_policy, daily_partitions
from cio_pipeline.defs.store import Store
from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.derive import STITCHED
from cio_pipeline.tables.tables import Tables

UPSTREAM = (identities,)
"""The only parent, as `posthog_events` comes before `identities`. If a multi-asset has two parents, Dagster 1.13 rejects every
backfill of it or none, depending on the order in which its webserver happens to walk the graph.

R1 (facts) needs the identities of all earlier days. A partition mapping that said so would make a backfill of one day include
all later days. Instead a backfill's runs go in the order of their days (dagster.yaml), and checks name what is missing.
"""

logger = logging.getLogger(__name__)

DESCRIPTIONS = {
    "customers": "One row per upsert of a customer, and its operation. When it is sent, attributes may be left out (R17, R19).",
    "events": "One row per event to send, and the operation as it will be sent.",
    "rejects": "One row per refused event, attribute or property, and why.",
}


def _spec(name: str, description: str) -> dg.AssetSpec:
    """Returns a table's place in the asset graph, and the columns for its page."""
    metadata = {"dagster/column_schema": SCHEMAS[name], "dagster/column_lineage": lineage(name), **folder_uri("derived")}
    kinds = {"pandas", "parquet"}
    return dg.AssetSpec(
        asset_key(name), deps=UPSTREAM, description=description, kinds=kinds, owners=OWNERS, tags=TAGS, metadata=metadata
    )


@dg.multi_asset(
    specs=[_spec(name, text) for name, text in DESCRIPTIONS.items()],
    partitions_def=daily_partitions,
    backfill_policy=backfill_policy,
    group_name=GROUP,
    check_specs=CHECKS_OF_THE_RUN,
)
@with_readable_failures
def customers_events_rejects(
    context: dg.AssetExecutionContext, store: dg.ResourceParam[Store]
) -> Iterator["dg.MaterializeResult[None] | dg.AssetCheckResult"]:
    """Applies the rules to the day's posthog_events, with what the identities of this and all earlier days say."""
    _check_identities_selected(context.job_def.asset_layer.selected_asset_keys)
    counts_by_day: dict[str, DayCounts] = {}
    for day in context.partition_keys:
        counts_by_day[day] = store.derive(day)
        _add_metadata(context, store, day, counts_by_day[day])
    yield from (dg.MaterializeResult(asset_key=asset_key(name)) for name in DESCRIPTIONS)
    yield few_refused_by_the_rules(counts_by_day, store.settings.refused_share)
    yield every_event_accounted_for(counts_by_day, store)


def _check_identities_selected(selected: Set[dg.AssetKey]) -> None:
    """Raises `dagster.Failure` if the run extracts and derives without `identities`: only these, which lie between, make
    Dagster run `posthog_events` first."""
    if posthog_events.key in selected and identities.key not in selected:
        raise dg.Failure("To extract and derive in one run, select identities, too: they lie between.", allow_retries=False)


def _add_metadata(context: dg.AssetExecutionContext, store: Store, day: str, day_counts: DayCounts) -> None:
    outcomes = Counter({**day_counts.outcomes, STITCHED: day_counts.stitched})
    metadata: dict[str, dict[str, dg.MetadataValue | int]] = {
        "customers": {"notes": _table(day_counts.notes)},
        "events": {
            "extracted": day_counts.outcomes.total(),
            "filtered": day_counts.filtered,
            "refused": day_counts.refused,
            "outcomes": _table(outcomes),
        },
        "rejects": {"reasons": _table(rejects_by_reason(store.tables, day))},
    }
    counts = metadata["events"]
    logger.info(
        "%s: %s events, %s filtered, %s refused by the rules.",
        day,
        *(f"{counts[name]:,}" for name in ("extracted", "filtered", "refused")),
    )
    for name, of_table in metadata.items():
        rows = {"dagster/partition_row_count": store.tables.version(name, day).rows}
        masked_rows = {"first rows, masked": first_rows(store.tables, name, day)}
        context.add_asset_metadata({**rows, **of_table, **masked_rows}, asset_key=asset_key(name), partition_key=day)


def _table(counts: Counter[str]) -> dg.MetadataValue:
    """Returns a table of the counts that are not 0, the largest first, and their sum."""
    rows: list[Row] = [{"count": count, "what": name} for name, count in counts.most_common() if count]
    return table([*rows, {"count": counts.total(), "what": "in all"}])


def rejects_by_reason(tables: Tables, day: str) -> Counter[str]:
    """Returns the number of rows of a day's `rejects` by what is left out and why: `<what>: <reason>`."""
    counts = Counter[str]()
    for shard in tables.read_arrow("rejects", day, ["what", "reason"]):
        rows = shard.group_by(["what", "reason"]).aggregate([([], "count_all")]).to_pylist()
        counts.update({f"{row['what']}: {row['reason']}": row["count_all"] for row in rows})
    return counts
