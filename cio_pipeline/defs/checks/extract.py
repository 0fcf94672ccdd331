"""The checks of `posthog_events`: it has what PostHog counted, about as many events as usual, and attributes."""

from collections.abc import Mapping
from datetime import date, timedelta
from statistics import median

import dagster as dg

from cio_pipeline.defs.asset_keys import asset_key
from cio_pipeline.defs.checks.common import WHICH_DAYS, days_of_run_or_recent, list_days, or_warning
from cio_pipeline.defs.store import Store
from cio_pipeline.pipeline.extract_shard import ExtractionCounts
from cio_pipeline.tables.tables import Tables

POSTHOG_EVENTS_KEY = asset_key("posthog_events")

USUAL_WEEKS = 8
"""The number of weeks back in which a day is compared with the same weekday."""

FAR_BELOW = 0.5
"""The check warns of fewer events than this share of the usual number."""

FAR_ABOVE = 5
"""The check warns of more events than this many times the usual number."""

MANY = 100
"""Fewer events than this are never too many."""

WITH_PERSON_PROPERTIES = (
    "CIO_EVENT_SOURCE to one that has the persons' properties (query, or an export with the column person_properties), and run"
    " the days again."
)

CHECKS_OF_THE_RUN = [
    dg.AssetCheckSpec(
        "counts_agree_with_posthog",
        asset=POSTHOG_EVENTS_KEY,
        description="Whether at least as many events were read of each day of the run as PostHog had counted before. Only"
        " CIO_EVENT_SOURCE=query has a count.",
    ),
    dg.AssetCheckSpec(
        "attributes_given",
        asset=POSTHOG_EVENTS_KEY,
        description="Whether the days of the run for which PostHog has dropped $set (R20) still have attributes: every event"
        " that should use its person's properties has them, and a day with $identify or $set events has an attribute.",
    ),
]


def counts_agree(kept: Mapping[str, ExtractionCounts], counted: Mapping[str, int]) -> dg.AssetCheckResult:
    """Returns the result of the check of this name, for the days that were just read. counted: PostHog's counts, if any, by
    day."""
    short = [day for day, count in counted.items() if kept[day].rows_read < count]
    details = "; ".join(
        f"of {day}, PostHog counted {counted[day]:,} events and returned {kept[day].rows_read:,}" for day in short
    )
    return dg.AssetCheckResult(
        check_name="counts_agree_with_posthog",
        passed=not short,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"Fewer events were read than PostHog has: {details}. Have events been deleted in PostHog since? If not,"
        " run these days again."
        if short
        else None,
        metadata={
            "events counted by PostHog": sum(counted.values()),
            "events read": sum(counts.rows_read for counts in kept.values()),
            "events kept": sum(counts.rows_written for counts in kept.values()),
            "duplicates": sum(counts.duplicates.total() for counts in kept.values()),
            "days short of events": len(short),
            "days without a count": len(kept) - len(counted),
        },
    )


def attributes_given(kept: Mapping[str, ExtractionCounts]) -> dg.AssetCheckResult:
    """Returns the result of the check of this name, for the days that were just read.

    A recent day may have only `$identify` events that set nothing; if an old one does, PostHog has probably dropped its
    attributes. Whether an event whose source has no person's properties ever had a `$set` cannot be told, so it counts as one
    that did.
    """
    lost = {day: counts.lacked_person for day, counts in kept.items() if counts.lacked_person}
    bare = [day for day, counts in kept.items() if counts.may_lack_set and counts.identity_events and not counts.has_attributes]
    lacking = [day for day in kept if day in lost or day in bare]
    if lost:
        why = (
            f"{sum(lost.values()):,} events should use their person's properties (R20), but their source has none: any"
            f" attributes and emails that they had are lost. Set {WITH_PERSON_PROPERTIES}"
        )
    else:
        why = (
            "PostHog keeps $set for 60 days, and no $identify or $set event of these days has an attribute or email any more."
            f" Set CIO_ATTRIBUTES_FROM to auto, and {WITH_PERSON_PROPERTIES}"
        )
    return dg.AssetCheckResult(
        check_name="attributes_given",
        passed=not lacking,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{list_days(lacking)}: {why}" if lacking else None,
        metadata={
            "days that lack attributes": len(lacking),
            "$identify and $set events": sum(counts.identity_events for counts in kept.values()),
            "events that lack their person's properties": sum(lost.values()),
        },
    )


@dg.asset_check(
    asset=POSTHOG_EVENTS_KEY,
    description="Whether each day has events, and neither far fewer nor far more than its weekday had in the"
    f" {USUAL_WEEKS} weeks before. {WHICH_DAYS}",
)
def as_many_events_as_usual(context: dg.AssetCheckExecutionContext, store: dg.ResourceParam[Store]) -> dg.AssetCheckResult:
    """Uses only the tables, so it can be run on its own."""
    return or_warning(lambda: _as_many_events_as_usual(store.tables, days_of_run_or_recent(context.run)))


def _as_many_events_as_usual(tables: Tables, days: list[str]) -> dg.AssetCheckResult:
    versions = {day: tables.find_version("posthog_events", day) for day in days}
    rows = {day: version.rows for day, version in versions.items() if version is not None}
    usual = {day: usual_events(tables, day) for day in rows}
    odd = [day for day in rows if is_unusual(rows[day], usual[day])]
    details = [f"{day} has {rows[day]:,} events" + (f", {usual[day]:,.0f} are usual" if usual[day] else "") for day in odd]
    return dg.AssetCheckResult(
        passed=not odd,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{'; '.join(details)}. Look in PostHog whether events are missing, or come from a fault or a bot. If"
        " PostHog has a different number by now, run the days again."
        if odd
        else None,
        metadata={
            "events": sum(rows.values()),
            "events as usual": round(sum(usual.values())),
            "days with no events": sum(not count for count in rows.values()),
            "days far from usual": len(odd),
            "days looked at": len(rows),
        },
    )


def is_unusual(events: int, usual: float) -> bool:
    """Returns whether a day has no events, or far more or fewer than the usual number (0 if that is unknown)."""
    is_far_above = bool(usual) and events > usual * FAR_ABOVE and events >= MANY
    return not events or events < usual * FAR_BELOW or is_far_above


def usual_events(tables: Tables, day: str) -> float:
    """Returns the usual number of events of the weekday: the median of the extracted weeks before, or 0 if there are none."""
    before = [str(date.fromisoformat(day) - timedelta(weeks=weeks)) for weeks in range(1, USUAL_WEEKS + 1)]
    versions = [tables.find_version("posthog_events", earlier) for earlier in before]
    rows = [version.rows for version in versions if version is not None]
    return median(rows) if rows else 0
