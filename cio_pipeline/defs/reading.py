"""Reads PostHog's events and the history into the store, for the assets, a dry run and an hourly run."""

import logging
from dataclasses import replace
from datetime import datetime

from cio_pipeline.defs.partitions import daily_partitions, day_bounds, now
from cio_pipeline.defs.store import Store
from cio_pipeline.pipeline.extract import extract_day, extract_history, reusable_extraction
from cio_pipeline.pipeline.extract_shard import ExtractionCounts
from cio_pipeline.pipeline.learn import learn_history
from cio_pipeline.posthog.reading import RETURNED
from cio_pipeline.posthog.source import EventSource
from cio_pipeline.progress import Progress
from cio_pipeline.state.identity_tables import HISTORY_PARTITION

logger = logging.getLogger(__name__)


def read_day(
    day: str, posthog: EventSource, store: Store, until: datetime | None = None
) -> tuple[ExtractionCounts, dict[str, int]]:
    """Reads a day's events, or those before `until`, from PostHog into the store's `posthog_events`.

    Returns the counts of the extraction and of the reading (`EventStream.stats`). If PostHog's events were read twice, the
    `rows_read` are those of the second reading, which are to be compared with PostHog's count.
    """
    began, (start, end), settings = now(), day_bounds(day), store.settings
    events = posthog.events(start, until or end)
    counts = reusable_extraction(store.tables, day, events.fingerprint)
    if counts is not None:
        logger.info("%s: %s events, from files that have not changed since they were read.", day, f"{counts.rows_written:,}")
    else:
        with Progress(day, "events read", events.expected) as progress:
            with_progress = replace(events, frames=progress.rows_of(events.frames))
            counts = extract_day(
                store.tables,
                day,
                with_progress,
                start=start,
                attributes=settings.attributes_from,
                now=began,
                workers=settings.workers,
                allowlist=settings.event_allowlist,
            )
    if counts.lacked_person:
        logger.warning(
            "%s: %s events have lost their $set, and CIO_EVENT_SOURCE has no person properties. Read the day with"
            " CIO_EVENT_SOURCE=query, or from an export that has them.",
            day,
            f"{counts.lacked_person:,}",
        )
    return replace(counts, rows_read=events.stats.get(RETURNED, counts.rows_read)), events.stats


def history_is_known(store: Store) -> bool:
    """Returns whether the history was learned under the current settings."""
    return not store.identities.unlearned([HISTORY_PARTITION], _history_setting(store))


def read_history(posthog: EventSource, store: Store) -> None:
    """Reads the history from PostHog, and learns it (R18)."""
    began = now()
    events = posthog.history(_history_end())
    with Progress("History", "events read", events.expected) as progress:
        with_progress = replace(events, frames=progress.rows_of(events.frames))
        extract_history(
            store.tables,
            HISTORY_PARTITION,
            with_progress,
            attributes=store.settings.attributes_from,
            now=began,
            workers=store.settings.workers,
        )
    learn_history(_history_setting(store), store.tables, store.identities, store.settings.workers)


def _history_end() -> datetime:
    return day_bounds(daily_partitions.get_first_partition_key() or str(daily_partitions.start.date()))[0]


def _history_setting(store: Store) -> str:
    return f"{store.learned_under} before {_history_end():%Y-%m-%d}"
