"""Events from the list endpoint, for self-hosted PostHog 1.30.0 to 1.43: `GET /api/projects/:id/events/`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cio_pipeline.posthog.client import Api, error_for
from cio_pipeline.posthog.rows import NO_TIME, event_frame
from cio_pipeline.posthog.source import EVENT_SCHEMA, HISTORY_EVENTS, NEEDED, EventStream, NotExtracted
from cio_pipeline.progress import Progress
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.rules.values import EPOCH

PAGE_ROWS = 1000
"""The rows requested for a page. Servers return 100 (fixed in old ones), at most 1,000 (`EVENT_LIST_MAX_LIMIT`), or at most
50,000."""

MAX_PAGE_ROWS = 100_000
"""The most rows requested, if a single moment fills every smaller page."""

PAGE_SIZES = frozenset({100, 1000, 10_000, 50_000, MAX_PAGE_ROWS})
"""The limits of PostHog's versions and of the requests: a page of exactly that size may be incomplete."""

TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
FRAME_ROWS = 50_000
LISTED = pa.schema([*EVENT_SCHEMA, (NEEDED, pa.bool_())])

EventKey = tuple[Any, ...]
"""The values that identify an event, since clients may give several of them the same uuid, or none."""


class Page(NamedTuple):
    """The events of a page, and whether PostHog says that there are more. Only a yes is used: a no may be wrong."""

    events: pd.DataFrame
    has_next: bool


class EventsApiSource:
    """The `events_api` source: pages by time, each beginning with the moment at which the previous one ended.

    Such a PostHog returns no created_at and no person properties, and strips quotes from both ends of a text property.
    """

    def __init__(
        self, url: str, project_id: str, api_key: str, allowlist: tuple[str, ...], attributes_from: AttributesFrom
    ) -> None:
        self._api = Api(url, project_id, api_key)
        self._names = {*allowlist, "$identify"} if allowlist else None
        self._attributes_from = attributes_from

    def check(self) -> None:
        """Raises `NotExtracted` if PostHog does not accept the key or the project, or person properties are required."""
        now = datetime.now(UTC)
        self._page(ListingCursor(now - DAY, now, limit=1))
        if self._attributes_from == "person":
            raise NotExtracted("CIO_ATTRIBUTES_FROM must be auto or set: PostHog's list of events has no person properties.")

    def events(self, start: datetime, end: datetime) -> EventStream:
        """Returns the events of a time window, listed day by day, as lists of several days were seen to be incomplete."""
        days = [start + number * DAY for number in range(-(-(end - start) // DAY))]
        pages = (page for day in days for page in self._pages(day, min(day + DAY, end)))
        return _spooled(f"{start:%Y-%m-%d}", map(self._marked, pages))

    def readable_until(self, start: datetime, moment: datetime) -> datetime:  # noqa: ARG002
        """Returns `moment`: PostHog lists all events that it has."""
        return moment

    def history(self, before: datetime) -> EventStream:
        """Returns all `$identify` and `$set` events before that time."""
        pages = (page for event in HISTORY_EVENTS for page in self._pages(EPOCH, before, event=event))
        return _spooled(f"Before {before:%Y-%m-%d}", pages)

    def _pages(self, start: datetime, end: datetime, **only: str) -> Iterator[pd.DataFrame]:
        """The new events of each page. An empty page is requested once more."""
        cursor = ListingCursor(start - TICK, end)
        while not cursor.is_at_end:
            page = self._page(cursor, **only)
            if page.events.empty:
                page = self._page(cursor, **only)
            yield cursor.without_repeated(page.events)
            cursor.advance(page)
        for remaining in cursor.must_be_empty:
            if not self._page(remaining, **only).events.empty:
                raise cursor.incomplete()

    def _page(self, cursor: ListingCursor, **only: str) -> Page:
        """The page at the cursor. only: further parameters, which restrict the events."""
        bounds = {"after": _text(cursor.after), "before": _text(cursor.before)}
        answer = self._api.ask("GET", "events", params={**bounds, **only, "orderBy": '["timestamp"]', "limit": cursor.limit})
        if answer.status != 200:
            raise error_for(answer)
        try:
            rows, next_url = answer.body["results"], answer.body["next"]
            columns = {name: [row[name] for row in rows] for name in ("event", "distinct_id", "timestamp", "properties")}
            uuids = [_uuid(row["id"]) for row in rows]
            frame = event_frame({**columns, "uuid": uuids}, cursor.after + TICK, cursor.before)
        except (KeyError, TypeError, AttributeError):
            raise NotExtracted(
                "PostHog's answer is not a list of events: is POSTHOG_HOST the address of PostHog itself?"
            ) from None
        if (frame["timestamp"] == NO_TIME).any():
            raise NotExtracted("PostHog lists an event whose time cannot be read, so others might be missed.")
        return Page(frame, next_url is not None)

    def _marked(self, events: pd.DataFrame) -> pd.DataFrame:
        """The events, and which of them the settings need (R1: identities, R3: the allowlist), as in the query source."""
        if self._names is None:
            return events
        with_email = events["properties"].str.contains('"email"', regex=False, na=False)
        return events.assign(**{NEEDED: events["event"].isin(self._names) | with_email})


def _spooled(subject: str, pages: Iterator[pd.DataFrame]) -> EventStream:
    """Writes the pages to a temporary file first, to count their rows, since PostHog cannot. Without `NEEDED`, all are needed.
    subject: of the progress lines."""
    stats = {"pages": 0}
    file = tempfile.TemporaryFile(prefix="cio_pipeline_")  # noqa: SIM115 - deleted with the last frame
    with (
        Progress(subject, "events listed", None) as progress,
        pq.ParquetWriter(file, LISTED, compression="lz4") as writer,
    ):
        for page in pages:
            stats["pages"] += 1
            progress.add(len(page))
            marked = page if NEEDED in page else page.assign(**{NEEDED: True})
            writer.write_table(pa.Table.from_pandas(marked, LISTED, preserve_index=False))
    spooled = pq.ParquetFile(file)
    frames = (pa.Table.from_batches([batch]) for batch in spooled.iter_batches(FRAME_ROWS))
    return EventStream(spooled.metadata.num_rows, frames, stats)


@dataclass
class ListingCursor:
    """The part of a time window that is still to be listed: `after` < timestamp < `before`.

    It includes the last moment of the previous page, as a full page may lack events of that moment, which PostHog's `next`
    would skip. So the last page is of a single moment: either it is complete, or the server has cut it off. In doubt, the
    windows `must_be_empty` tell which.
    """

    after: datetime
    before: datetime
    limit: int = PAGE_ROWS
    is_at_end: bool = False
    must_be_empty: list[ListingCursor] = field(default_factory=list)
    _is_ascending: bool | None = None
    _last_moment: datetime = EPOCH
    _page_keys: set[EventKey] = field(default_factory=set)
    _page_rows: int = 0
    _most_rows: dict[int, int] = field(default_factory=dict)  # of a page, by its limit

    def without_repeated(self, page: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows that the previous page did not have. Raises `NotExtracted` unless the page begins with that page's
        last moment.

        Events of the same moment may come in a different order each time, so any of them may be first.
        """
        if not self._page_rows:
            return page
        if page.empty or page["timestamp"].iloc[0] != self._last_moment:
            raise NotExtracted(f"PostHog's list jumps at {self._last_moment.isoformat()}, so events might be missed.")
        return page[[key not in self._page_keys for key in _keys(page)]]

    def advance(self, page: Page) -> None:
        """Moves to the last moment of the page. If the page is of a single moment, requests a larger one, or ends.

        Raises `NotExtracted` if the largest page may be incomplete.
        """
        previous_rows, self._page_rows = self._page_rows, len(page.events)
        if page.events.empty:
            self.is_at_end = True
            return
        times = page.events["timestamp"]
        self._page_keys, self._last_moment = set(_keys(page.events)), times.iloc[-1].to_pydatetime()
        self._is_ascending = _is_ascending(times, self._is_ascending)
        most_rows = max((rows for limit, rows in self._most_rows.items() if limit <= self.limit), default=0)
        if self._is_ascending and self._last_moment - TICK > self.after:
            self.after = self._last_moment - TICK
            self._note_rows()
        elif self._is_ascending is False and self._last_moment + TICK < self.before:
            self.before = self._last_moment + TICK
            self._note_rows()
        elif self._page_rows < most_rows:
            self.is_at_end = True
        elif self.limit == PAGE_ROWS or (self._page_rows > previous_rows and self.limit < MAX_PAGE_ROWS):
            self.limit *= 10
        elif (
            self._page_rows == most_rows
            or self._page_rows in PAGE_SIZES
            or (page.has_next and self._page_rows > min(PAGE_SIZES))
        ):
            raise self.incomplete()
        else:
            self.is_at_end, self.must_be_empty = True, self._remaining()

    def _note_rows(self) -> None:
        """Notes the size of a page with this limit: a smaller last page is complete, one of the same size may not be."""
        self._most_rows[self.limit] = max(self._page_rows, self._most_rows.get(self.limit, 0))
        self.limit = PAGE_ROWS

    def incomplete(self) -> NotExtracted:
        """Returns the error for a moment that may have more events than the server lists at once."""
        return NotExtracted(
            f"PostHog lists {self._page_rows:,} events of the moment {self._last_moment.isoformat()}, and no more at once, but"
            " there may be more: write that day's events to a file and set CIO_EVENT_SOURCE=batch_export for it."
        )

    def _remaining(self) -> list[ListingCursor]:
        """The window after the last moment in the server's order; if the order is unknown, also the one before it."""
        later, earlier = ListingCursor(self._last_moment, self.before), ListingCursor(self.after, self._last_moment)
        return {True: [later], False: [earlier], None: [later, earlier]}[self._is_ascending]


def _keys(page: pd.DataFrame) -> list[EventKey]:
    return list(page[[*ORDER, "properties"]].itertuples(index=False, name=None))


def _is_ascending(times: pd.Series[Any], known: bool | None) -> bool | None:
    """Whether a page is in ascending order of time, as servers differ in this; `known` if it is of a single moment."""
    is_ascending, is_descending = times.is_monotonic_increasing, times.is_monotonic_decreasing
    if is_ascending and is_descending:
        return known
    if known is (not is_ascending) or not (is_ascending or is_descending):
        raise NotExtracted(
            f"PostHog's list around {times.iloc[0].isoformat()} is not in order of time, so events might be missed."
        )
    return bool(is_ascending)


def _uuid(value: Any) -> Any:
    if isinstance(value, int):
        raise NotExtracted(
            "This PostHog runs without ClickHouse, so its events have numbers instead of uuids: it is not supported."
        )
    return value


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
