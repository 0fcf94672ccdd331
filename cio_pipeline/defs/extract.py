"""PostHog's events of a day, and what they teach about people."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from statistics import median

import dagster as dg

from cio_pipeline.defs.failures import failing_in_a_sentence
from cio_pipeline.defs.keys import GROUP, PREFIX, key
from cio_pipeline.defs.partitions import a_few_days_a_run, days, window
from cio_pipeline.defs.resources import PostHog, Store
from cio_pipeline.extraction import Extracted, extract_day, extract_history
from cio_pipeline.learning import learn_day, learn_history, learned_under
from cio_pipeline.progress import Progress
from cio_pipeline.state.identities import HISTORY
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)

USUAL_WEEKS = 8
"""A day is compared with the same weekday of so many weeks before it."""

FAR_BELOW = 0.5
"""Fewer than this share of the usual number of events is said."""

WHAT_GIVES_NONE = (
    "there are $identify or $set events, but none gives an attribute or email. PostHog keeps $set for 60 days: for older days"
    " set CIO_ATTRIBUTES_FROM to auto, and CIO_EVENT_SOURCE to one that has the persons' properties (query, or an export with"
    " the column person_properties), and run the days again."
)


def now() -> datetime:
    """When an extraction begins; R20 goes by the events' age then."""
    return datetime.now(timezone.utc)


@dg.asset(
    partitions_def=days,
    backfill_policy=a_few_days_a_run,
    key_prefix=PREFIX,
    group_name=GROUP,
    kinds={"posthog", "parquet"},
    check_specs=[
        dg.AssetCheckSpec(
            "as_many_events_as_usual",
            asset=key("posthog_events"),
            description="Whether a day has events, and not far fewer than its weekday had in the weeks before.",
        ),
        dg.AssetCheckSpec(
            "attributes_given",
            asset=key("posthog_events"),
            description="Whether a day with $identify or $set events has an event that gives attributes.",
        ),
    ],
)
@failing_in_a_sentence
def posthog_events(
    context: dg.AssetExecutionContext, posthog: PostHog, store: Store
) -> Iterator["dg.MaterializeResult[None] | dg.AssetCheckResult"]:
    """The day's events as PostHog stores them, each once; only those that the settings need."""
    kept: dict[str, Extracted] = {}
    for day in context.partition_keys:
        kept[day], facts = read_day(day, posthog, store)
        context.add_asset_metadata({**_counts(kept[day]), **facts}, partition_key=day)
    yield dg.MaterializeResult()
    yield _as_many_events_as_usual(kept, store.tables)
    yield _attributes_given(kept)


def read_day(day: str, posthog: PostHog, store: Store) -> tuple[Extracted, dict[str, int]]:
    """Reads a day's events from PostHog into the store's table; gives what was kept, and what the reading took."""
    began = now()
    found = posthog.source.events(*window(day))
    with Progress(day, "events read", found.expected) as progress:
        read = replace(found, frames=progress.rows_of(found.frames))
        kept = extract_day(store.tables, day, window(day)[0], read, store.attributes_from, began, store.workers)
    if kept.without:
        logger.warning(
            "%s: %s events have lost their $set, and CIO_EVENT_SOURCE has no person properties.", day, f"{kept.without:,}"
        )
    return kept, found.facts


def _counts(kept: Extracted) -> dict[str, int]:
    """The metadata of a day."""
    r20 = {"events with a $set that PostHog has dropped since": kept.remembered} if kept.remembered else {}
    if kept.from_person:
        r20["events that give the person's properties"] = kept.from_person
    duplicates = {"duplicates": kept.duplicates.total(), **kept.duplicates}
    return {"dagster/row_count": kept.rows, **duplicates, **r20, "shards": kept.shards}


def _as_many_events_as_usual(kept: dict[str, Extracted], tables: Tables) -> dg.AssetCheckResult:
    few = {
        day: usual for day in kept if (usual := usual_events(tables, day)) * FAR_BELOW > kept[day].rows or not kept[day].rows
    }
    told = [
        f"{day} has {kept[day].rows:,} events" + (f", {usual:,.0f} are usual" if usual else "") for day, usual in few.items()
    ]
    return dg.AssetCheckResult(
        check_name="as_many_events_as_usual",
        passed=not few,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{'; '.join(told)}: see in PostHog whether events are missing, and run the days again." if few else None,
        metadata={"days": list(few)},
    )


def usual_events(tables: Tables, day: str) -> float:
    """How many events the weekday usually has: the median of the weeks before that were extracted; 0 where none was."""
    before = [str(date.fromisoformat(day) - timedelta(weeks=weeks)) for weeks in range(1, USUAL_WEEKS + 1)]
    versions = [tables.current("posthog_events", one) for one in before]
    rows = [version.rows for version in versions if version is not None]
    return median(rows) if rows else 0


def _attributes_given(kept: dict[str, Extracted]) -> dg.AssetCheckResult:
    bare = [day for day, one in kept.items() if one.teaching and not one.gives]
    return dg.AssetCheckResult(
        check_name="attributes_given",
        passed=not bare,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{', '.join(bare)}: {WHAT_GIVES_NONE}" if bare else None,
        metadata={"days": bare},
    )


class HistoryConfig(dg.Config):
    """How to take the history."""

    again: bool = False
    """Read it again, though it is known."""


@dg.asset(key_prefix=PREFIX, group_name=GROUP, kinds={"posthog", "sql"})
@failing_in_a_sentence
def identity_history(config: HistoryConfig, posthog: PostHog, store: Store) -> "dg.MaterializeResult[None]":
    """What all `$identify` and `$set` events before the first partition teach (R18); read once, then kept."""
    if not config.again and history_is_known(store):
        return dg.MaterializeResult(metadata={"known already": True})
    return dg.MaterializeResult(metadata=read_history(posthog, store))


def history_is_known(store: Store) -> bool:
    """Whether the history was learned, under the settings as they are."""
    return not store.identities.unlearned([HISTORY], _history_setting(store))


def read_history(posthog: PostHog, store: Store) -> dict[str, int]:
    """Reads the history from PostHog and learns it (R18); gives what was kept and learned, by name."""
    began = now()
    found = posthog.source.history(_history_end())
    with Progress("History", "events read", found.expected) as progress:
        read = replace(found, frames=progress.rows_of(found.frames))
        kept = extract_history(store.tables, HISTORY, read, store.attributes_from, began, store.workers)
    counts = learn_history(_history_setting(store), store.tables, store.identities, store.workers)
    return {"events": kept.rows, **kept.duplicates, **counts}


def _history_end() -> datetime:
    return window(days.get_first_partition_key() or str(days.start.date()))[0]


def _history_setting(store: Store) -> str:
    return f"{learned_under(store.attributes_from)} before {_history_end():%Y-%m-%d}"


@dg.asset(
    partitions_def=days,
    backfill_policy=a_few_days_a_run,
    key_prefix=PREFIX,
    group_name=GROUP,
    kinds={"pandas", "sql"},
    deps=[posthog_events, identity_history],
)
@failing_in_a_sentence
def identities(context: dg.AssetExecutionContext, store: Store) -> None:
    """What the day teaches about each distinct_id: whether it was identified, its email, its anonymous ids (R1, R16)."""
    for day in context.partition_keys:
        counts = learn_day(day, learned_under(store.attributes_from), store.tables, store.identities, store.workers)
        context.add_asset_metadata({"dagster/row_count": counts["people"], **counts}, partition_key=day)
