"""Events from HogQL queries to PostHog's query endpoint, `POST /api/projects/:id/query/`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cio_pipeline.http.retry import backoff
from cio_pipeline.posthog.client import Answer, Api, error_for
from cio_pipeline.posthog.reading import COUNTED, Queries, Selection, WindowReader
from cio_pipeline.posthog.slices import TARGET_ROWS
from cio_pipeline.posthog.source import HISTORY_EVENTS, EventStream, NotExtracted
from cio_pipeline.rules.dropped_set import columns_with_emails
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.rules.values import EPOCH

CHECK_TRIES = 5
ENDPOINT_TRIES = 3

PERSON = "poe.properties"
COLUMNS = ("uuid", "event", "distinct_id", "timestamp", "created_at", "properties")


class QuerySource:
    """The `query` source: counts the events, reads them in slices by name and hash, and checks them against the counts."""

    def __init__(
        self, url: str, project_id: str, api_key: str, allowlist: tuple[str, ...], attributes_from: AttributesFrom
    ) -> None:
        self._queries = Queries(Api(url, project_id, api_key))
        self._allowlist, self._attributes_from = allowlist, attributes_from

    def exists(self) -> bool:
        """True unless PostHog itself says, several times, that it has no query endpoint."""
        for attempt in range(ENDPOINT_TRIES):
            if attempt:
                time.sleep(backoff(attempt))
            if not _has_no_queries(self._queries.ask("SELECT 1", {}, tries=CHECK_TRIES)):
                return True
        return False

    def check(self) -> None:
        """Raises `NotExtracted` if PostHog does not accept the key or the project."""
        answer = self._queries.ask("SELECT 1", {}, tries=CHECK_TRIES)
        if answer.status != 200:
            raise error_for(answer)

    def events(self, start: datetime, end: datetime) -> EventStream:
        """Returns the events of a time window, which are counted first. Raises `NotExtracted` if PostHog refuses."""
        needed = _needed(self._allowlist, columns_with_emails(self._attributes_from, start))
        reader = WindowReader(self._queries, Selection(self._columns(start), *needed), start, end)
        counts = reader.counts(start, end)
        reader.stats[COUNTED] = counts.total()
        return EventStream(counts.total(), reader.frames(counts), reader.stats)

    def readable_until(self, start: datetime, moment: datetime) -> datetime:  # noqa: ARG002
        """Returns `moment`: a query finds all events that PostHog has."""
        return moment

    def history(self, before: datetime) -> EventStream:
        """Returns all `$identify` and `$set` events before that time. Raises `NotExtracted` if PostHog refuses."""
        selection = Selection(self._columns(EPOCH), " AND event IN {needed}", {"needed": list(HISTORY_EVENTS)})
        reader = WindowReader(self._queries, selection, EPOCH, before)
        months = reader.months(EPOCH, before)
        windows = (WindowReader(self._queries, selection, start, end) for start, end in _windows(months, before))
        return EventStream(
            months.total(), (frame for window in windows for frame in window.all_frames(reader.stats)), reader.stats
        )

    def _columns(self, start: datetime) -> tuple[str, ...]:
        needs_person = self._attributes_from != "set" and "person_properties" in columns_with_emails(
            self._attributes_from, start
        )
        return (*COLUMNS, f"{PERSON} AS person_properties") if needs_person else COLUMNS


def _has_no_queries(answer: Answer) -> bool:
    """True for the answer of a PostHog without queries: its router's 404, or Django REST's 405."""
    no_endpoint = answer.status == 404 and answer.detail == "Endpoint not found."
    return no_endpoint or (answer.status == 405 and answer.code == "method_not_allowed")


def _needed(allowlist: tuple[str, ...], columns: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Returns a condition for the events that the settings need, and its values: the allowlist (R3), and events that identify
    people (R1).

    `LIKE` selects a few events too many, but misses none, whereas ClickHouse's JSON functions find nothing in text with an
    unpaired surrogate.
    """
    if not allowlist:
        return "", {}
    values = {"needed": [*allowlist, "$identify"], "email": '%"email"%'}
    texts = [PERSON if column == "person_properties" else column for column in columns]
    return f" AND (event IN {{needed}} OR {' OR '.join(f'{text} LIKE {{email}}' for text in texts)})", values


def _windows(months: Counter[str], before: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Splits the time up to `before` into windows of as many months as fit in one slice, but at least one."""
    start, rows = EPOCH, 0
    for month in sorted(months):
        if rows and rows + months[month] > TARGET_ROWS:
            yield start, _first_of(month)
            start, rows = _first_of(month), 0
        rows += months[month]
    if rows:
        yield start, before


def _first_of(month: str) -> datetime:
    try:
        return datetime.strptime(month, "%Y%m").replace(tzinfo=UTC)
    except ValueError:
        raise NotExtracted("PostHog's answer is not a list of months: is POSTHOG_HOST the address of PostHog itself?") from None
