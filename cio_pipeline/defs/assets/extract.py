"""The assets `posthog_events`, `identity_history` and `identities`: PostHog's events, and what they say about people."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from cio_pipeline.defs.asset_keys import GROUP, OWNERS, PREFIX, TAGS
from cio_pipeline.defs.assets.external import posthog_project
from cio_pipeline.defs.checks.extract import CHECKS_OF_THE_RUN, attributes_given, counts_agree
from cio_pipeline.defs.connections import folder_uri
from cio_pipeline.defs.failures import MAX_FAILURES, DaysFailed, failed_in_a_row, with_readable_failures
from cio_pipeline.defs.pages.previews import first_rows
from cio_pipeline.defs.pages.schemas import SCHEMAS
from cio_pipeline.defs.pages.tables import size, table
from cio_pipeline.defs.partitions import backfill_policy, daily_partitions
from cio_pipeline.defs.reading import history_is_known, read_day, read_history
from cio_pipeline.defs.store import Store
from cio_pipeline.errors import PipelineError
from cio_pipeline.pipeline.extract_shard import ExtractionCounts
from cio_pipeline.posthog.reading import COUNTED
from cio_pipeline.posthog.source import EventSource
from cio_pipeline.state.identity_tables import HISTORY_PARTITION

logger = logging.getLogger(__name__)

LEARNED = ("people", "identified", "emails", "anonymous ids named")


@dg.asset(
    partitions_def=daily_partitions,
    backfill_policy=backfill_policy,
    key_prefix=PREFIX,
    group_name=GROUP,
    kinds={"posthog", "parquet"},
    owners=OWNERS,
    tags=TAGS,
    deps=[posthog_project],
    metadata={"dagster/column_schema": SCHEMAS["posthog_events"], **folder_uri("posthog_events")},
    check_specs=CHECKS_OF_THE_RUN,
)
@with_readable_failures
def posthog_events(
    context: dg.AssetExecutionContext, posthog: dg.ResourceParam[EventSource], store: dg.ResourceParam[Store]
) -> Iterator["dg.AssetMaterialization | dg.MaterializeResult[None] | dg.AssetCheckResult"]:
    """The day's events as PostHog stores them, each once; only those that the settings need."""
    extracted, errors = _extract_days(context.partition_keys, posthog, store)
    if errors:
        for day, its in extracted.items():
            yield dg.AssetMaterialization(posthog_events.key, partition=day, metadata=its.metadata)
        raise _failure(context.partition_keys, errors, len(extracted))
    for day, its in extracted.items():
        context.add_asset_metadata(its.metadata, partition_key=day)
    yield dg.MaterializeResult()
    counts_by_day = {day: its.counts for day, its in extracted.items()}
    yield counts_agree(counts_by_day, {day: its.stats[COUNTED] for day, its in extracted.items() if COUNTED in its.stats})
    yield attributes_given(counts_by_day)


@dataclass(frozen=True)
class ExtractedDay:
    """What a day's extraction has counted (stats: `EventStream.stats`), and the metadata of its materialization."""

    counts: ExtractionCounts
    stats: Mapping[str, int]
    metadata: dict[str, int | dg.MetadataValue]


def _extract_days(
    days: Sequence[str], posthog: EventSource, store: Store
) -> tuple[dict[str, ExtractedDay], dict[str, PipelineError]]:
    """Extracts each day, even if other days fail. Returns the extracted days, and the errors of those that failed.

    Stops after `MAX_FAILURES` failures in a row; the days after that are not tried.
    """
    extracted: dict[str, ExtractedDay] = {}
    errors: dict[str, PipelineError] = {}
    for day in days:
        try:
            counts, stats = read_day(day, posthog, store)
            masked_rows = {"first rows, masked": first_rows(store.tables, "posthog_events", day)}
            extracted[day] = ExtractedDay(counts, stats, {**_day_metadata(counts, stats), **masked_rows})
        except PipelineError as error:
            errors[day] = error
            if failed_in_a_row(days, errors, last=day):
                break
    return extracted, errors


def _failure(days: Sequence[str], errors: Mapping[str, PipelineError], extracted_days: int) -> PipelineError:
    """Returns the error of a run that could not extract some of its days."""
    if len(days) == 1:
        return next(iter(errors.values()))
    not_tried = days[len(errors) + extracted_days :]
    named = " ".join(f"{day}: {error}" for day, error in errors.items())
    rest = f" After {MAX_FAILURES} failures in a row, the days from {not_tried[0]} on were not tried." if not_tried else ""
    others = f" {extracted_days} {'other is' if extracted_days == 1 else 'others are'} extracted." if extracted_days else ""
    return DaysFailed(f"{len(errors)} of the run's days could not be extracted. {named}{rest}{others}")


def _day_metadata(counts: ExtractionCounts, stats: Mapping[str, int]) -> dict[str, int | dg.MetadataValue]:
    duplicates = [{"count": count, "why": why} for why, count in counts.duplicates.most_common()]
    took = {**stats, "events that CIO_EVENT_ALLOWLIST leaves out": counts.not_needed, "files written": counts.shards}
    return {
        "dagster/partition_row_count": counts.rows_written,
        "duplicates": counts.duplicates.total(),
        "events with a $set that PostHog has dropped since": counts.set_restored,
        "events that give the person's properties": counts.used_person,
        "duplicates by reason": table(duplicates),
        "what the reading took": table([{"count": _readable(name, count), "what": name} for name, count in took.items()]),
    }


def _readable(name: str, count: int) -> str | int:
    """Returns bytes as `1.3 GB`, any other count as it is."""
    return size(count) if name.startswith("bytes") else count


class HistoryConfig(dg.Config):
    """Options of the history."""

    again: bool = False
    """Read it again, although it is known."""


@dg.asset(
    key_prefix=PREFIX,
    group_name=GROUP,
    kinds={"posthog", "sql"},
    owners=OWNERS,
    tags=TAGS,
    deps=[posthog_project],
    metadata={"dagster/column_schema": SCHEMAS["identity_history"], **folder_uri("identity_history")},
)
@with_readable_failures
def identity_history(
    config: HistoryConfig, posthog: dg.ResourceParam[EventSource], store: dg.ResourceParam[Store]
) -> "dg.MaterializeResult[None]":
    """What all $identify and $set events before the first partition say (R18: history); read once, then kept."""
    is_new = config.again or not history_is_known(store)
    if is_new:
        read_history(posthog, store)
    return dg.MaterializeResult(metadata=_history_counts(store, read_now=is_new))


def _history_counts(store: Store, *, read_now: bool) -> dict[str, int | bool]:
    """Returns the counts of the history, which are the same whether it was read now or earlier."""
    version = store.tables.find_version("identity_history", HISTORY_PARTITION)
    counts = store.identities.counts(HISTORY_PARTITION)
    return {
        "dagster/row_count": version.rows if version else 0,
        "duplicates": version.metadata.get("duplicates", 0) if version else 0,
        **{name: counts[name] for name in LEARNED},
        "read by this run": read_now,
    }


@dg.asset(
    partitions_def=daily_partitions,
    backfill_policy=backfill_policy,
    key_prefix=PREFIX,
    group_name=GROUP,
    kinds={"pandas", "sql"},
    owners=OWNERS,
    tags=TAGS,
    metadata={"dagster/column_schema": SCHEMAS["identities"]},
    deps=[posthog_events, identity_history],
)
@with_readable_failures
def identities(context: dg.AssetExecutionContext, store: dg.ResourceParam[Store]) -> None:
    """What the day says about each distinct_id: whether it was identified, its email (R1: facts), its anonymous ids (R16)."""
    for day in context.partition_keys:
        counts = store.learn(day)
        learned = {name: counts[name] for name in LEARNED}
        context.add_asset_metadata({"dagster/partition_row_count": counts["people"], **learned}, partition_key=day)
