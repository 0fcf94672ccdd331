"""The assets `posthog_events`, `identity_history` and `identities`: PostHog's events, and what they say about people."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg

from cio_pipeline.defs.assets.external import posthog_project
from cio_pipeline.defs.checks.extract import SPECS, attributes_given, counts_agree
from cio_pipeline.defs.connections import folder_uri
from cio_pipeline.defs.failures import MAX_FAILURES, DaysFailed, failures_of_days, with_readable_failures
from cio_pipeline.defs.keys import GROUP, OWNERS, PREFIX, TAGS, key
from cio_pipeline.defs.pages.previews import preview
from cio_pipeline.defs.pages.schemas import SCHEMAS
from cio_pipeline.defs.pages.tables import size, table
from cio_pipeline.defs.partitions import backfill_policy, daily_partitions, window
from cio_pipeline.defs.resources import PostHog, Store
from cio_pipeline.errors import PipelineError
from cio_pipeline.pipeline.extract import extract_day, extract_history, reusable_extraction
from cio_pipeline.pipeline.extract_shard import ExtractionCounts
from cio_pipeline.pipeline.learn import learn_day, learn_history, learned_under
from cio_pipeline.posthog.reading import COUNTED
from cio_pipeline.progress import Progress
from cio_pipeline.state.identities import HISTORY_PARTITION

logger = logging.getLogger(__name__)

EVENTS = key("posthog_events")

LEARNED = ("people", "identified", "emails", "anonymous ids named")


def now() -> datetime:
    """Returns when an extraction begins, which decides the age of its events (R20: dropped `$set`)."""
    return datetime.now(UTC)


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
    check_specs=SPECS,
)
@with_readable_failures
def posthog_events(
    context: dg.AssetExecutionContext, posthog: PostHog, store: Store
) -> Iterator["dg.AssetMaterialization | dg.MaterializeResult[None] | dg.AssetCheckResult"]:
    """The day's events as PostHog stores them, each once; only those that the settings need."""
    extracted: dict[str, ExtractionCounts] = {}
    counted: dict[str, int] = {}
    metadata: dict[str, dict[str, int | dg.MetadataValue]] = {}

    def extract(day: str) -> None:
        extracted[day], stats = read_day(day, posthog, store)
        if COUNTED in stats:
            counted[day] = stats[COUNTED]
        first_rows = {"first rows, masked": preview(store.tables, "posthog_events", day)}
        metadata[day] = {**_day_metadata(extracted[day], stats), **first_rows}

    if errors := failures_of_days(context.partition_keys, extract):
        yield from (dg.AssetMaterialization(EVENTS, partition=day, metadata=of_day) for day, of_day in metadata.items())
        not_tried = [day for day in context.partition_keys if day not in metadata.keys() | errors.keys()]
        raise _failure(errors, not_tried, len(metadata))
    for day, of_day in metadata.items():
        context.add_asset_metadata(of_day, partition_key=day)
    yield dg.MaterializeResult()
    yield counts_agree(extracted, counted)
    yield attributes_given(extracted)


def _failure(errors: Mapping[str, PipelineError], not_tried: list[str], extracted: int) -> PipelineError:
    """Returns the error of a run that could not extract some of its days."""
    if len(errors) + len(not_tried) + extracted == 1:
        return next(iter(errors.values()))
    named = " ".join(f"{day}: {error}" for day, error in errors.items())
    rest = f" After {MAX_FAILURES} failures in a row, the days from {not_tried[0]} on were not tried." if not_tried else ""
    others = f" The other {extracted} are extracted." if extracted > 1 else ""
    return DaysFailed(f"{len(errors)} of the run's days could not be extracted. {named}{rest}{others}")


def read_day(
    day: str, posthog: PostHog, store: Store, until: datetime | None = None
) -> tuple[ExtractionCounts, dict[str, int]]:
    """Reads a day's events, or those before `until`, from PostHog into the store's `posthog_events`.

    Returns the counts of the extraction and of the reading (`EventStream.stats`).
    """
    began, (start, end), settings = now(), window(day), store.settings
    events = posthog.source.events(start, until or end)
    extracted = reusable_extraction(store.tables, day, events.fingerprint)
    if extracted is not None:
        logger.info("%s: %s events, from files that have not changed since they were read.", day, f"{extracted.rows_written:,}")
    else:
        with Progress(day, "events read", events.expected) as progress:
            counted = replace(events, frames=progress.rows_of(events.frames))
            extracted = extract_day(store.tables, day, start, counted, settings.attributes_from, began, settings.workers)
    if extracted.lacked_person:
        logger.warning(
            "%s: %s events have lost their $set, and CIO_EVENT_SOURCE has no person properties.",
            day,
            f"{extracted.lacked_person:,}",
        )
    return extracted, events.stats


def _day_metadata(extracted: ExtractionCounts, stats: Mapping[str, int]) -> dict[str, int | dg.MetadataValue]:
    duplicates = [{"count": count, "why": why} for why, count in extracted.duplicates.most_common()]
    took = {**stats, "files written": extracted.shards}
    return {
        "dagster/partition_row_count": extracted.rows_written,
        "duplicates": extracted.duplicates.total(),
        "events with a $set that PostHog has dropped since": extracted.set_restored,
        "events that give the person's properties": extracted.used_person,
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
def identity_history(config: HistoryConfig, posthog: PostHog, store: Store) -> "dg.MaterializeResult[None]":
    """What all $identify and $set events before the first partition say (R18: history); read once, then kept."""
    is_new = config.again or not history_is_known(store)
    if is_new:
        read_history(posthog, store)
    return dg.MaterializeResult(metadata=_history_counts(store, read_now=is_new))


def history_is_known(store: Store) -> bool:
    """Returns whether the history was learned under the current settings."""
    return not store.identities.unlearned([HISTORY_PARTITION], _history_setting(store))


def read_history(posthog: PostHog, store: Store) -> None:
    """Reads the history from PostHog, and learns it (R18)."""
    began = now()
    events = posthog.source.history(_history_end())
    with Progress("History", "events read", events.expected) as progress:
        counted = replace(events, frames=progress.rows_of(events.frames))
        extract_history(store.tables, HISTORY_PARTITION, counted, store.settings.attributes_from, began, store.settings.workers)
    learn_history(_history_setting(store), store.tables, store.identities, store.settings.workers)


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


def _history_end() -> datetime:
    return window(daily_partitions.get_first_partition_key() or str(daily_partitions.start.date()))[0]


def _history_setting(store: Store) -> str:
    return f"{learned_under(store.settings.attributes_from)} before {_history_end():%Y-%m-%d}"


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
def identities(context: dg.AssetExecutionContext, store: Store) -> None:
    """What the day says about each distinct_id: whether it was identified, its email (R1: facts), its anonymous ids (R16)."""
    setting, workers = learned_under(store.settings.attributes_from), store.settings.workers
    for day in context.partition_keys:
        counts = learn_day(day, setting, store.tables, store.identities, workers)
        learned = {name: counts[name] for name in LEARNED}
        context.add_asset_metadata({"dagster/partition_row_count": counts["people"], **learned}, partition_key=day)
