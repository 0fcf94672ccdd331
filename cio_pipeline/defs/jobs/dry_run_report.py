"""The report of a dry run, as tables and as lines."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import dagster as dg

from cio_pipeline.customerio.counts import (
    CAMPAIGN_EVENTS,
    CHANGED_CUSTOMERS,
    CUSTOMERS_BEYOND_LIMIT,
    CUSTOMERS_SUPPRESSED,
    EVENTS_BEYOND_LIMIT,
    EVENTS_DELIVERED_BEFORE,
    EVENTS_SUPPRESSED,
    EVENTS_TO_SEND,
    EVENTS_TOO_RECENT,
    NEW_CUSTOMERS,
    ONLY_PERSONLESS,
    PEOPLE_LISTED,
    UPSERTS_WITH_NOTHING_NEW,
    all_refused_before,
)
from cio_pipeline.customerio.delivery import Report
from cio_pipeline.defs.pages.tables import Row, lines, table
from cio_pipeline.defs.partitions import days_text
from cio_pipeline.pipeline.accounting import DayCounts

NOTHING_SENT = "Nothing was sent."
DAYS_BEYOND = "days with more refused than CIO_REFUSED_SHARE allows"
REFUSED_BEFORE = "refused by Customer.io before"
ROWS_SHOWN = 100
SAMPLE_SHOWN = 30

PREVIEW_COUNTS = (
    EVENTS_TO_SEND,
    NEW_CUSTOMERS,
    CAMPAIGN_EVENTS,
    CHANGED_CUSTOMERS,
    EVENTS_DELIVERED_BEFORE,
    UPSERTS_WITH_NOTHING_NEW,
)
"""The counts of a preview that the table of days always shows."""

PREVIEW_COUNTS_IF_ANY = (
    REFUSED_BEFORE,
    EVENTS_TOO_RECENT,
    ONLY_PERSONLESS,
    CUSTOMERS_SUPPRESSED,
    EVENTS_SUPPRESSED,
    CUSTOMERS_BEYOND_LIMIT,
    EVENTS_BEYOND_LIMIT,
)
"""Other counts, which are shown only if one is not 0."""


@dataclass(frozen=True)
class DayReport:
    """One day of a dry run."""

    day: str
    day_counts: DayCounts
    """What becomes of its events."""
    delivery: Report
    """What would be sent. A new customer counts only on their first day."""
    rejects: Counter[tuple[str, str]]
    """The number of events, attributes and properties that the rules refuse or leave out, by kind and reason."""

    @property
    def events(self) -> int:
        """The number of the day's events in PostHog."""
        return self.day_counts.outcomes.total()

    @property
    def refused(self) -> int:
        """The number of these that the rules refuse."""
        return self.day_counts.refused

    def counts(self) -> Counter[str]:
        """Returns the day's row in the table of days."""
        counts = self.delivery.counts
        return Counter(
            {
                **{name: counts[name] for name in PREVIEW_COUNTS},
                "events read": self.events,
                "filtered": self.day_counts.filtered,
                "refused by the rules": self.refused,
                **{name: counts[name] for name in PREVIEW_COUNTS_IF_ANY},
                REFUSED_BEFORE: all_refused_before(counts),
                "requests": counts["requests"],
            }
        )


@dataclass
class DryRunReport:
    """The report of what a run of the days would send."""

    days: list[DayReport]
    refused_share: float
    """CIO_REFUSED_SHARE."""
    suppressed: int = 0
    """The number of people on the suppression list."""
    stops: list[str] = field(default_factory=list)
    """What would end the run before its first request."""
    unmatched: list[str] = field(default_factory=list)
    """Sentences about names in the settings' lists that did not occur."""

    def total(self) -> Counter[str]:
        """Returns the sums of all days. A new customer counts once, a changed one on each day that changes them."""
        total = Counter[str]()
        for day in self.days:
            total.update(day.counts())
        return total

    def by_day(self) -> list[Row]:
        """Returns a row for each day and one for their sum; for a single day, a row for each count."""
        total = self.total()
        names = [name for name, count in total.items() if count or name not in PREVIEW_COUNTS_IF_ANY]
        if len(self.days) == 1:
            return [{"": name, "count": total[name]} for name in names]
        counts = {day.day: day.counts() for day in self.days} | {"in all": total}
        return [{"day": day, **{name: of_day[name] for name in names}} for day, of_day in counts.items()]

    def events_by_name(self) -> list[Row]:
        """Returns the number of events that would be sent, by masked name."""
        names = sum((day.delivery.event_names for day in self.days), Counter[str]())
        return [{"events to send": count, "event": name} for name, count in names.most_common()]

    def rejects(self) -> list[Row]:
        """Returns the number of events, attributes and properties that the rules refuse or leave out, by reason."""
        reasons = sum((day.rejects for day in self.days), Counter[tuple[str, str]]())
        return [{"count": count, "what": what, "reason": reason} for (what, reason), count in reasons.most_common()]

    def sample(self) -> list[Row]:
        """Returns some of what would be sent, masked."""
        return [{"day": day.day, "what would be sent, masked": line} for day in self.days for line in day.delivery.sample]

    def beyond(self) -> list[DayReport]:
        """Returns the days of which the rules refuse more than CIO_REFUSED_SHARE allows."""
        return [day for day in self.days if day.refused > self.refused_share * day.events]

    def metadata(self) -> dict[str, str | int | dg.MetadataValue]:
        """Returns the report as metadata of an observation."""
        total = self.total()
        return {
            "result": NOTHING_SENT,
            "days": days_text([day.day for day in self.days]),
            **{name: total[name] for name in (NEW_CUSTOMERS, CAMPAIGN_EVENTS, EVENTS_TO_SEND, CHANGED_CUSTOMERS)},
            "what would stop the run": " ".join(self.stops) or "nothing",
            DAYS_BEYOND: len(self.beyond()),
            "by day": table(self.by_day()),
            "events by name": table(self.events_by_name(), ROWS_SHOWN),
            "refused or left out by the rules": table(self.rejects(), ROWS_SHOWN),
            "sample": table(self.sample(), SAMPLE_SHOWN),
            PEOPLE_LISTED: self.suppressed,
            "names in your lists that these days do not have": " ".join(self.unmatched) or "none",
        }

    def lines(self) -> Iterator[str]:
        """Yields the report as lines, for the log and the terminal."""
        yield f"What a run of {days_text([day.day for day in self.days])} would send:"
        for title, rows, limit in (
            ("", self.by_day(), None),
            ("Events by name:", self.events_by_name(), ROWS_SHOWN),
            ("Refused or left out by the rules:", self.rejects(), ROWS_SHOWN),
            ("A sample, masked:", self.sample(), SAMPLE_SHOWN),
        ):
            if title and rows:
                yield title
            yield from (f"  {line}" for line in lines(rows, limit))
        if self.suppressed:
            yield f"The suppression list names {self.suppressed:,} people."
        yield from self.unmatched
        for day in self.beyond():
            share = f"{day.refused / day.events:.1%}, more than the {self.refused_share:.1%} that CIO_REFUSED_SHARE allows"
            yield f"Of {day.day} the rules refuse {share}."
        yield from (f"What would stop the run: {one}" for one in self.stops)
        yield NOTHING_SENT
