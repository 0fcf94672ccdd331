"""The checks of a run before its first request (earlier days, the ledger's days), and the limits from its config."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.forecast import RunLimits
from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.defs.delivery.ledger_checkpoint import FILE
from cio_pipeline.defs.partitions import DAYS_IN_ALL, SCHEDULE_TAG, days_before
from cio_pipeline.defs.reading import history_is_known
from cio_pipeline.defs.store import Store
from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.derive import COUNTS, SETTINGS, is_current, settings_of
from cio_pipeline.rules.classify import TO_SEND
from cio_pipeline.rules.consent import AllowConsent
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import Version

BACKFILL_TAG = "dagster/backfill"

MAX_DAYS_NOT_A_BACKFILL = 2
"""A run of more days than this is a backfill, unless the schedule started it."""

TablesByDay = dict[str, Tables]
"""The tables to send of each day."""


class RunLimitsConfig(dg.Config):
    """Limits of one run, instead of those of the settings."""

    max_new_customers: int | None = Field(
        default=None, ge=0, description="Instead of CIO_MAX_NEW_CUSTOMERS: the most new customers that this run may create."
    )
    max_campaign_events: int | None = Field(
        default=None,
        ge=0,
        description="Instead of CIO_MAX_CAMPAIGN_EVENTS: the most events under 72 hours old that a backfill may send.",
    )

    def run_limits(self, store: Store, *, is_backfill: bool, is_ledger_stale: bool = False) -> RunLimits:
        """Returns the run's limits. That on campaign events applies to backfills, and to any run with a stale ledger, which may
        send none unless its own config says how many: the setting was made before the ledger was lost."""
        settings = store.settings
        max_new_customers = settings.max_new_customers if self.max_new_customers is None else self.max_new_customers
        max_campaign_events = settings.max_campaign_events if self.max_campaign_events is None else self.max_campaign_events
        if is_ledger_stale:
            return RunLimits(max_new_customers, self.max_campaign_events or 0)
        return RunLimits(max_new_customers, max_campaign_events if is_backfill else None)

    def delivery_options(self, suppressed: Suppressed, allow_consent: AllowConsent) -> DeliveryOptions:
        """Returns the delivery's options, together with those of the settings."""
        return DeliveryOptions(suppressed, allow_consent=allow_consent)


STALE_LEDGER = (
    f"The ledger (CIO_LEDGER_URL) lacks deliveries that {FILE} in CIO_DATA_DIR, or Dagster's receipts, record: it was lost, or"
    " is an older copy, and what it lacks would be sent again."
)


def is_backfill(tags: Mapping[str, str], days: list[str]) -> bool:
    """Returns whether a run with these tags and days is a backfill, to which `CIO_MAX_CAMPAIGN_EVENTS` applies."""
    in_all = int(tags.get(DAYS_IN_ALL, len(days)))
    return BACKFILL_TAG in tags or (in_all > MAX_DAYS_NOT_A_BACKFILL and SCHEDULE_TAG not in tags)


def check_derived(store: Store, days: list[str]) -> None:
    """Raises `NotDelivered` if the tables of a day were derived under other settings, or of other events or earlier days than
    are there now, or hold more or fewer events than were extracted (R15), and `NotMaterialized` if there are none. In a run
    that also derives the days, this happens only if another run changes them at the same time."""
    settings = settings_of(store.options)
    derived = {day: store.tables.version("events", day) for day in days}
    otherwise = [day for day, version in derived.items() if version.metadata.get(SETTINGS) != settings]
    if otherwise:
        raise NotDelivered(
            f"customers, events and rejects of {_ranges(otherwise)} were derived under other settings than the current ones:"
            " nothing was sent. Materialize them again, or run the job customerio_sync."
        )
    stale = [day for day in days if not is_current(day, store.tables, store.identities, store.options)]
    if stale:
        raise NotDelivered(
            f"customers, events and rejects of {_ranges(stale)} were derived before posthog_events of the day was extracted"
            " again, or before an earlier day was learned: nothing was sent. Materialize them again, or run the job"
            " customerio_sync."
        )
    off = [day for day, version in derived.items() if not _adds_up(version, store.tables.version("posthog_events", day))]
    if off:
        raise NotDelivered(
            f"customers, events and rejects of {_ranges(off)} do not account for the extracted events, each once (R15): nothing"
            " was sent. Materialize them again, or run the job customerio_sync."
        )


def _adds_up(events: Version, extracted: Version) -> bool:
    """Returns whether a day's derived tables account for the extracted events, by what is stored with the versions."""
    counts = DayCounts.from_json(events.metadata[COUNTS])
    if min(counts.outcomes.values(), default=0) < 0:
        return False
    return counts.outcomes.total() == extracted.rows and counts.outcomes[TO_SEND] + counts.stitched == events.rows


def check_no_day_is_missing(store: Store, days: list[str]) -> None:
    """Raises `NotDelivered` if the history (R18) or earlier days were never learned, although they decide what is sent, or
    under which key (R1: facts)."""
    if store.settings.missing_days == "allow" or not store.options.needs_earlier_days:
        return
    if not history_is_known(store):
        raise NotDelivered(
            "What PostHog knew before the current CIO_START_DATE was never read, and with the current CIO_IDENTIFY_BY_EMAIL and"
            " CIO_ANONYMOUS_USERS it decides what is sent: nothing was sent. Materialize identity_history, then customers,"
            " events and rejects of these days again; or set CIO_MISSING_DAYS=allow if that is intended."
        )
    missing = store.identities.unlearned(days_before(max(days)), store.learned_under)
    if missing:
        raise NotDelivered(
            f"{len(missing):,} earlier {'day was' if len(missing) == 1 else 'days were'} never learned"
            f" ({_ranges(missing)}), and with the current CIO_IDENTIFY_BY_EMAIL and CIO_ANONYMOUS_USERS they decide what is"
            f" sent of {days[0]}{'' if len(days) == 1 else f' to {days[-1]}'}: nothing was sent. Run them first, beginning with"
            " the oldest; or set CIO_START_DATE to the first day you have, or CIO_MISSING_DAYS=allow if that is intended."
        )


def check_days_are_in_ledger(store: Store, days: list[str], *, resend: bool) -> None:
    """Raises `NotDelivered` if the ledger has forgotten what was delivered of a day, or would at the end of the run
    (CIO_LEDGER_DAYS), unless `resend` sends everything anyway."""
    if resend:
        return
    again = "what was already delivered would be sent again, so nothing was sent."
    first = store.first_day_of_ledger
    if first is not None and days[0] < first:
        raise NotDelivered(
            f"The ledger remembers deliveries for CIO_LEDGER_DAYS days, so from {first} on, and this run begins at {days[0]}:"
            f" {again} If such days were never delivered, set CIO_LEDGER_DAYS to more; if they are to be sent again, choose"
            " resend (--resend)."
        )
    if forgotten := store.ledger.deleted_days(days):
        raise NotDelivered(
            f"What was delivered of {_ranges(forgotten)} is no longer in the ledger, as CIO_LEDGER_DAYS was less once: {again}"
            " If these days are to be sent again, choose resend (--resend)."
        )


def _ranges(missing: list[str], shown: int = 3) -> str:
    """Returns the days as text, consecutive ones as `first to last`; at most `shown` such ranges."""
    ranges: list[list[str]] = []
    for day in missing:
        follows = ranges and datetime.fromisoformat(day) - datetime.fromisoformat(ranges[-1][-1]) == timedelta(days=1)
        ranges[-1].append(day) if follows else ranges.append([day])
    texts = [days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" for days in ranges]
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")
